"""Models whose exports are compared: every mixer alone, all-attention, all-recurrent, a braid of five families, native ones."""

from typing import Any

import torch

from llm.config import build
from llm.init import ROLES, parameter_roles
from llm.mixers import MIXERS
from llm.model import Decoder, ModelConfig, model_kinds

VOCABULARY = 300
SMALL = {"heads": 2}


def mixer(kind: str, **settings: Any) -> dict[str, Any]:
    known = MIXERS[kind][0].__dataclass_fields__
    return {"kind": kind, **{key: value for key, value in SMALL.items() if key in known}, **settings}


def layer(kind: str, ffn: str = "swiglu", **settings: Any) -> dict[str, Any]:
    return {"mixer": mixer(kind, **settings), "ffn": ffn}


def model(layers: list[dict[str, Any]], **settings: Any) -> Decoder:
    """A decoder of these layers, its norms and biases away from where they start, so that a name mixed up shows."""
    named = {f"l{i}": value for i, value in enumerate(layers)}
    values = {"width": 32, "depth": len(layers), "vocab_size": VOCABULARY, "layers": named, "pattern": list(named), **settings}
    decoder = Decoder.create(build(ModelConfig, values, model_kinds("")), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, role in parameter_roles(decoder).items():
            parameter = decoder.get_parameter(name)
            scale = 0.1 if ROLES[role].float32 else 0.02
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return decoder


RECURRENT = [kind for kind in MIXERS if kind not in ("attention", "titans")]
FIVE = ["mamba", "mlstm", "retention", "titans", "attention"]

SCALED = {"kind": "llama3", "factor": 8.0, "context": 64}

REMOTE: dict[str, list[dict[str, Any]]] = {
    **{kind: [layer(kind, "none")] for kind in MIXERS},
    "all_attention": [
        layer("attention", kv_heads=1, qk_norm=True, rope_scaling=SCALED),
        layer("attention", window=9, gate=True, rope_fraction=0.5),
        layer("attention", recurrent={"heads": 2, "head_dim": 8, "state": 8}),
    ],
    "all_recurrent": [layer(kind, "none") for kind in RECURRENT],
    "five_families": [layer(kind) for kind in FIVE],
}

_GRANITE = {"norm_eps": 1e-5}
_MAMBA2 = {"state": 16, "norm_eps": 1e-5}
# architecture -> (layers, settings of the model)
NATIVE: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "llama": ([layer("attention", kv_heads=1, rope_theta=5e3)] * 2, {"tie_embeddings": False}),
    "mistral": ([layer("attention", window=9)] * 2, {}),
    "qwen3": ([layer("attention", head_dim=32, qk_norm=True, window=w) for w in (9, None)], {}),
    "mamba": ([layer("mamba", "none", dt_rank=3)] * 2, {"norm_eps": 1e-5}),
    "mamba2": ([layer("mamba2", "none", **_MAMBA2)] * 2, _GRANITE),
    "xlstm": ([layer("mlstm", qk_factor=1.0)] * 2, {"width": 64, "tie_embeddings": False, "logit_cap": 30.0}),
    "granitemoehybrid": (
        [layer("mamba2", **_MAMBA2), layer("attention", rope_theta=None), layer("mamba2", **_MAMBA2)],
        _GRANITE,
    ),
    "bamba": ([layer("mamba2", **_MAMBA2), layer("attention", rope_fraction=0.5)], {**_GRANITE, "tie_embeddings": False}),
}
