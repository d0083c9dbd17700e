"""A small dataset and an untrained braid to be measured on it."""

import os
import random
from pathlib import Path

import pytest
import torch

from data_prep.bpe import train_bpe
from eval.models.braid import BraidModel
from eval.subject import Subject, Trained
from llm.config import build
from llm.data import DataConfig
from llm.data.manifest import Source
from llm.data.write import DatasetWriter
from llm.model import Decoder, ModelConfig, model_kinds
from llm.train.config import RunConfig, TrainConfig
from llm.train.phases import phases_of
from llm.train.world import World

VOCABULARY = 300
LAYERS = {
    "r": {"mixer": {"kind": "retention", "heads": 2}, "ffn": "swiglu"},
    "w": {"mixer": {"kind": "attention", "heads": 2, "window": 7}},
    "f": {"mixer": {"kind": "attention", "heads": 2}},
}


@pytest.fixture(scope="session")
def subject(tmp_path_factory) -> Subject:
    """In float64. Held out: 13 documents, from one token of text to several windows of 16."""
    folder: Path = tmp_path_factory.mktemp("eval")
    tokenizer = train_bpe(["a bright cold day in april and the clocks were striking"] * 9, vocabulary=VOCABULARY)
    writer = DatasetWriter(folder / "data", tokenizer, {"text": Source(1.0, "CC0-1.0")}, shard_tokens=400)
    rng = random.Random(0)
    for k in range(60):
        tokens = [
            rng.choice([3, 5, 8, 13, 21]) if rng.random() < 0.7 else rng.randrange(1, 260)
            for _ in range(rng.choice([1, 2, 16, 33, 70]))
        ]
        writer.add("text", "validation" if k % 5 == 0 or k == 1 else "train", tokens, text_bytes=2 * len(tokens) + k % 3)
    manifest = writer.finish()
    values = {"width": 16, "depth": 3, "vocab_size": VOCABULARY, "layers": LAYERS, "pattern": ["r", "w", "f"]}
    model = Decoder.create(build(ModelConfig, values, model_kinds("")), seed=0).double()
    data = DataConfig(str(manifest.root), sequence_length=16)
    run = RunConfig("test", data=data, train=TrainConfig(steps=5, batch=8))
    origin = {"model": "test", "tokenizer": manifest.tokenizer.sha256}
    language_model = BraidModel(model, manifest.tokenizer_path, window=16)
    world = World(0, 1, torch.device("cpu"))
    return Subject("test", language_model, folder / "report", origin, world, data, Trained(phases_of(run), (0,), 40))


@pytest.fixture(autouse=True)
def same_environment():
    """The command settles ranks in the process's own environment."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
