"""Verdicts on steps, without ranks: what is usual, what is a spike, how many bad steps are too many, what a checkpoint keeps."""

import json
import math
from itertools import pairwise
from pathlib import Path
from statistics import median

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm.errors import ConfigError
from llm.train import checkpoint_files as files
from llm.train.bad_steps import NOT_FINITE, BadSteps, BadStepsConfig
from llm.train.config import load_config
from llm.train.quarantine import known, merged, quarantine_of, read_records, runs, short, write_records
from llm.train.run_folder import RunFolder
from llm.train.spikes import Limits, SpikeConfig, Spikes
from llm.train.world import World
from tests.train.conftest import MODEL

ALONE = World(0, 1, torch.device("cpu"))
VALUES = st.lists(st.floats(0.1, 100), min_size=1, max_size=30)


@given(VALUES, st.integers(1, 8), st.floats(1.1, 10))
def test_the_limit_is_a_factor_of_the_median_of_the_last_good_steps(values: list[float], window: int, factor: float) -> None:
    spikes = Spikes(SpikeConfig(loss=factor, window=window, warmup=0))
    for step, value in enumerate(values, 1):
        limits = spikes.limits(step)
        assert limits.grad_norm == math.inf
        past = values[: step - 1][-window:]
        assert limits.loss == (factor * median(past) if len(past) == window else math.inf)
        spikes.add({"loss": value})


@given(VALUES, VALUES, st.integers(0, 3))
def test_a_resumed_run_judges_as_an_undisturbed_one(before: list[float], after: list[float], skip: int) -> None:
    config = BadStepsConfig(skip=skip, window=5, spike=SpikeConfig(loss=1.2, grad_norm=2.0, window=3, warmup=2))
    whole, first = BadSteps(config), BadSteps(config)

    def go(judges: BadSteps, values: list[float], first: int) -> list[str | None]:
        said = []
        for step, value in enumerate(values, first):
            limits = judges.limits(step)
            if value <= limits.loss and value <= limits.grad_norm:
                judges.good(value, value)
            else:
                said.append(judges.too_many(step, judges.why(step, value, value)))
        return said

    go(whole, before, 1)
    go(first, before, 1)
    second = BadSteps(config)
    second.restore(json.loads(json.dumps(first.state())))
    assert go(second, after, len(before) + 1) == go(whole, after, len(before) + 1)
    assert second.state() == whole.state()


def test_spikes_are_not_judged_in_the_warmup_nor_before_the_window_is_full() -> None:
    spikes = Spikes(SpikeConfig(grad_norm=2.0, window=2, warmup=3))
    limits = []
    for step in range(1, 6):
        limits.append(spikes.limits(step))
        spikes.add({"grad_norm": 1.0})
    assert limits == [Limits(None, math.inf)] * 3 + [Limits(None, 2.0)] * 2


def test_words_say_what_was_bad() -> None:
    judges = BadSteps(BadStepsConfig(skip=1, window=4, spike=SpikeConfig(loss=1.5, grad_norm=10, window=1, warmup=0)))
    judges.good(2.0, 0.5)
    assert judges.why(2, torch.tensor(2.0), torch.tensor(math.inf)) == NOT_FINITE
    assert judges.why(2, 3.5, 1.0) == "its loss (3.5) is more than 1.5 times the usual 2 (train.bad_steps.spike.loss)"
    assert judges.why(2, 2.5, 6.0) == "its grad norm (6) is more than 10 times the usual 0.5 (train.bad_steps.spike.grad_norm)"
    law = "one more bad step than train.bad_steps.skip (1) allows in 4 steps"
    assert [judges.too_many(step, NOT_FINITE) for step in (2, 6, 7, 11)] == [None, None, law, None]


def test_one_spike_may_be_too_many_where_others_are_not() -> None:
    judges = BadSteps(BadStepsConfig(spike=SpikeConfig(loss=1.5, at_once=True)))
    assert judges.too_many(1, NOT_FINITE) is None
    assert judges.too_many(2, "its loss ...") == "a spike, of which train.bad_steps.spike.at_once allows none"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["then=rollback"], r"then \(rollback\) goes back to a checkpoint, and train.checkpoint_every \(0\) makes none"),
        (["max_rollbacks=5"], r"max_rollbacks \(5\) has no effect without train.bad_steps.then=rollback"),
        (["then=rollback", "max_rollbacks=0"], r"max_rollbacks \(0\) must be at least 1; train.bad_steps.then=stop"),
        (["then=back"], "rollback"),
        (["spike.loss=1"], r"spike.loss \(1.0\) is a factor of the median, and must be finite and above 1"),
        (["spike.grad_norm=.inf"], "null switches it off"),
        (["spike.loss=2", "spike.window=0"], r"spike.window \(0\) must be at least 1"),
        (["spike.at_once=true"], "has no effect without train.bad_steps.spike.loss or train.bad_steps.spike.grad_norm"),
        (["spike.loss=2", "spike.warmup=-1"], r"spike.warmup \(-1\) at least 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(words: list[str], sentence: str) -> None:
    given_ = [f"train.bad_steps.{word}" for word in words]
    with pytest.raises(ConfigError, match=sentence):
        load_config([*MODEL, "name=x", "data.manifest=x", "train.steps=200", "train.batch=1", *given_]).train.check()


def record(step: int, low: int, high: int, seed: int = 0) -> dict:
    return {"step": step, "checkpoint": 1, "rows": [low, high], "why": "", "stream": {"seed": seed}, "documents": {"a": [[0, 1]]}}


def test_a_start_obeys_its_folder_its_checkpoint_and_where_that_lies(tmp_path: Path) -> None:
    own, origin = RunFolder(tmp_path / "own"), RunFolder(tmp_path / "origin")
    for folder in (own, origin):
        folder.report.mkdir(parents=True)
    write_records(own.report, [record(9, 40, 48)])
    write_records(origin.report, [record(5, 8, 16), record(9, 40, 48)])
    progress = {"quarantine": short([record(3, 0, 8), record(5, 8, 16)])}
    found = known(own, origin.checkpoints / files.name_of(4), progress, ALONE)
    assert [one["rows"] for one in found] == [[0, 8], [8, 16], [40, 48]]
    # what has the documents goes before what has not
    assert ["documents" in one for one in found] == [False, True, True]
    assert read_records(own.report) == found
    assert known(own, None, {}, ALONE) == found


def test_a_quarantine_holds_for_its_own_stream_alone() -> None:
    records = merged([record(1, 0, 8)], [record(2, 0, 8, seed=1), record(1, 0, 8)])
    assert len(records) == 2
    assert len(quarantine_of(records, {"seed": 1})) == 8
    assert len(quarantine_of(records, {"seed": 2})) == 0


@given(st.sets(st.integers(0, 30)))
def test_runs_hold_the_numbers_and_nothing_else(numbers: set[int]) -> None:
    found = runs(numbers)
    assert [n for low, high in found for n in range(low, high + 1)] == sorted(numbers)
    assert all(high + 1 < low for (_, high), (low, _) in pairwise(found))
