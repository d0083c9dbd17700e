"""A braid of every kind of mixer, a tokenizer, and its export."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from data_prep.bpe import train_bpe
from llm.config import build
from llm.export import folder as exporter
from llm.mixers import MIXERS
from llm.model import Decoder, ModelConfig, model_kinds

VOCABULARY = 300
# `patterns.py` lies beside the tests
sys.path.append(str(Path(__file__).parent))


def create(**changes) -> Decoder:
    known = {"heads": 2}
    layers = {
        kind: {"mixer": {"kind": kind, **{k: v for k, v in known.items() if k in config.__dataclass_fields__}}, "ffn": "none"}
        for kind, (config, _) in MIXERS.items()
    }
    layers["window"] = {"mixer": {"kind": "attention", "heads": 2, "window": 9, "qk_norm": True}, "ffn": "swiglu"}
    layers["context"] = {"mixer": {"kind": "titans", "variant": "mac", "heads": 2, "chunk": 8, "persistent": 2}, "ffn": "none"}
    values = {"width": 16, "depth": len(layers), "vocab_size": VOCABULARY, "layers": layers, "pattern": list(layers), **changes}
    model = Decoder.create(build(ModelConfig, values, model_kinds("")), seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


@pytest.fixture(scope="session")
def braid() -> Callable[..., Decoder]:
    """Makes a model of `VOCABULARY` ids with one layer of every kind of the table, a windowed attention and memory as context."""
    return create


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    path.write_bytes(train_bpe(["def spam(eggs): return eggs"] * 9, vocabulary=VOCABULARY))
    return path


@pytest.fixture(scope="session")
def exported(tokenizer, tmp_path_factory):
    """(our model, the folder)"""
    out = tmp_path_factory.mktemp("export") / "out"
    model = create()
    exporter.export_folder(model, tokenizer, out, {"step": 3}, context=64)
    return model, out


@pytest.fixture(scope="session")
def loaded(exported):
    return AutoModelForCausalLM.from_pretrained(exported[1], trust_remote_code=True)
