"""Phases: data, context and schedule change at an exact token, and a kill at a border changes nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest

from llm.data import Manifest
from tests.train.conftest import MODEL, TRAIN

Words = Callable[..., list[str]]
# stable, then other rates and text, then eight times the context
STABLE = "{name: stable, steps: 6}"
ANNEALING = "{name: annealing, tokens: 1536, data: {mixture: {text: 1, code: 3}}, train: {schedule: {kind: linear, warmup: 0}}}"
LONG = (
    "{name: long, tokens: 2048, data: {sequence_length: 256}, model: {layers: {a: {mixer: {rope_theta: 50000}}}}, "
    "train: {batch: 2, micro_batch: 1, optimizer: {lr: 0.001}}}"
)
PHASES = f"train.phases=[{STABLE},{ANNEALING},{LONG}]"


@pytest.fixture
def words(two_sources: Manifest, tmp_path: Path) -> Words:
    train = [word for word in TRAIN if not word.startswith("train.steps")]
    return lambda *more: [*MODEL, *train, f"data.manifest={two_sources.root}", f"runs={tmp_path / 'runs'}", *more]
