"""Tiny datasets: two sources of different weights, several shards each, a held-out split."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from data_prep.bpe import train_bpe
from llm.data.manifest import Manifest, Source
from llm.data.write import DatasetWriter

WORDS = "the quick brown fox jumps over the lazy dog def return self for in range print lambda yield".split()


@pytest.fixture(scope="session")
def tokenizer_json() -> bytes:
    return train_bpe([" ".join(WORDS)] * 20, vocabulary=300)


@pytest.fixture(scope="session")
def make_dataset(tokenizer_json: bytes) -> Callable[..., Manifest]:
    """Write a dataset of random ids; all of it follows from the arguments."""

    def make(folder: Path, documents: int = 120, shard_tokens: int = 700, vocabulary: int = 300) -> Manifest:
        rng = random.Random(1)
        sources = {"prose": Source(0.7, "CC0-1.0"), "code": Source(0.3, "MIT")}
        writer = DatasetWriter(folder, tokenizer_json, sources, shard_tokens)
        for k in range(documents):
            # lengths from empty to several windows; ids 1... so that only the opening one is 0
            tokens = [rng.randrange(1, vocabulary) for _ in range(rng.choice([0, 1, 2, 9, 40, 90]))]
            writer.add(
                rng.choice(["prose", "code"]), "validation" if k % 6 == 0 else "train", tokens, text_bytes=3 * len(tokens) + k
            )
        return writer.finish()

    return make


@pytest.fixture(scope="session")
def dataset(make_dataset, tmp_path_factory) -> Manifest:
    """To be read only."""
    return make_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture
def copy_of_dataset(make_dataset, tmp_path: Path) -> Manifest:
    """To be damaged."""
    return make_dataset(tmp_path / "copy")


class Numbered(NamedTuple):
    """A dataset in which no id comes twice but the document token's. documents: the ids of the texts, by source, in order."""

    manifest: Manifest
    documents: dict[str, list[list[int]]]


@pytest.fixture(scope="session")
def numbered(tokenizer_json: bytes, tmp_path_factory) -> Numbered:
    """To be read only."""
    content, rng = json.loads(tokenizer_json), random.Random(2)
    content["model"]["vocab"] |= {f"filler{k}": k for k in range(len(content["model"]["vocab"]), 6000)}
    writer = DatasetWriter(
        tmp_path_factory.mktemp("numbered"),
        json.dumps(content).encode(),
        {"a": Source(0.6, "x"), "b": Source(0.3, "x"), "unread": Source(0.0, "x")},
        shard_tokens=300,
    )
    documents: dict[str, list[list[int]]] = {"a": [], "b": [], "unread": []}
    following = 1
    for _ in range(130):
        name = rng.choice(["a", "a", "b", "unread"])
        ids = list(range(following, following + rng.choice([0, 1, 2, 7, 15, 16, 17, 40, 90])))
        following += len(ids)
        writer.add(name, "train", ids, text_bytes=len(ids))
        documents[name].append(ids)
    return Numbered(writer.finish(), documents)
