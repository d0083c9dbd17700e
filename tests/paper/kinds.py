"""Layers whose steps and graphs are looked at: every kind of mixer, and settings that change how time is crossed."""

from typing import Any

from llm.config import build
from llm.mixers import MIXERS
from llm.model import ModelConfig, model_kinds

HEADS = {
    "attention": 16,
    "gru": 32,
    "lstm": 32,
    "mamba2": 32,
    "mlstm": 8,
    "mlstm_paper": 4,
    "retention": 8,
    "slstm": 32,
    "titans": 16,
}
LAYERS: dict[str, dict[str, Any]] = {kind: {"kind": kind} | ({"heads": HEADS[kind]} if kind in HEADS else {}) for kind in MIXERS}
KINDS = LAYERS | {
    "attention, window, grouped": {"kind": "attention", "heads": 16, "kv_heads": 4, "window": 300, "soft_cap": 30.0},
    "titans, mag": {"kind": "titans", "heads": 16, "variant": "mag", "window": 300, "persistent": 16},
    "titans, mac": {"kind": "titans", "heads": 16, "variant": "mac", "chunk": 64, "persistent": 16},
}
FIVE: dict[str, dict[str, Any]] = {
    "m": {"mixer": {"kind": "mamba"}, "ffn": {"kind": "none"}},
    "x": {"mixer": {"kind": "mlstm", "heads": 16}, "ffn": {"kind": "swiglu"}},
    "r": {"mixer": {"kind": "retention", "heads": 16, "value_factor": 1}, "ffn": {"kind": "swiglu"}},
    "t": {"mixer": {"kind": "titans", "heads": 32}, "ffn": {"kind": "swiglu"}},
    "a": {"mixer": {"kind": "attention", "heads": 32, "kv_heads": 8}, "ffn": {"kind": "swiglu"}},
}
# Python's loop over tokens, in PyTorch's form of these, takes long
TOKENS = dict.fromkeys(("gru", "lstm", "slstm"), 64)


def model(width: int, depth: int, layers: dict[str, Any]) -> ModelConfig:
    settings = {"width": width, "depth": depth, "vocab_size": 50304, "tie_embeddings": False, "layers": layers}
    return build(ModelConfig, settings | {"pattern": list(layers)}, model_kinds(""))
