"""A tiny run: a dataset that can be learned a little, and the words that train on it."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from llm.data import DOCUMENT_TOKEN, Manifest
from llm.data.manifest import Source
from llm.data.write import DatasetWriter
from llm.testing import run_ranks

VOCABULARY = 257
MODEL = [
    "model.width=32",
    "model.depth=2",
    f"model.vocab_size={VOCABULARY}",
    "model.layers.r.mixer.kind=retention",
    "model.layers.r.mixer.heads=2",
    "model.layers.r.ffn.kind=swiglu",
    "model.layers.a.mixer.kind=attention",
    "model.layers.a.mixer.heads=2",
    "model.layers.a.ffn.kind=swiglu",
    "model.pattern=[r,a]",
]
TRAIN = [
    "name=tiny",
    "data.sequence_length=32",
    "train.steps=20",
    "train.batch=8",
    "train.optimizer.lr=0.01",
    "train.schedule.warmup=4",
    "train.log_every=1",
    "train.peak_flops=1e9",
    "train.tensorboard=false",
]


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """200 short documents of ids that follow from one another."""
    return write_dataset(tmp_path_factory.mktemp("dataset"), ["text"])


@pytest.fixture(scope="session")
def two_sources(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The same in two sources of equal weight."""
    return write_dataset(tmp_path_factory.mktemp("sources"), ["text", "code"])


def write_dataset(folder: Path, sources: list[str], special: Sequence[str] = (DOCUMENT_TOKEN,)) -> Manifest:
    """200 documents, dealt out to the sources in turn. special: tokens of the tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = VOCABULARY - 1 + len(special)
    tokenizer.train_from_iterator(
        [], BpeTrainer(vocab_size=size, special_tokens=list(special), initial_alphabet=alphabet, show_progress=False)
    )
    writer = DatasetWriter(folder, tokenizer.to_str().encode(), {name: Source(1.0, "CC0-1.0") for name in sources})
    rng = random.Random(0)
    for k in range(200):
        tokens = [rng.randrange(1, VOCABULARY)]
        for _ in range(rng.randint(1, 90)):
            tokens.append((3 * tokens[-1] + rng.choice([1, 2])) % VOCABULARY)
        writer.add(sources[k % len(sources)], "validation" if k % 10 == 0 else "train", tokens, len(tokens))
    return writer.finish()


@pytest.fixture
def words(manifest: Manifest, tmp_path: Path) -> Callable[..., list[str]]:
    """The words of a tiny run in `tmp_path`/runs, and more of them."""
    return lambda *more: [*MODEL, *TRAIN, f"data.manifest={manifest.root}", f"runs={tmp_path / 'runs'}", *more]


@pytest.fixture(scope="session")
def on_two_ranks() -> tuple[dict[int, Any], list[dict[str, Any]]]:
    """What test_precision and test_optimizers ask of two ranks, in one start: that is what takes time."""
    from tests.train import test_optimizers, test_precision

    stages = test_optimizers.FEW
    return run_ranks(test_precision.truth_and_cases, 2, stages, test_optimizers.cases(stages), timeout=280)[0]
