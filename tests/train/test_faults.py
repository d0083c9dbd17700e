"""Ends and bad steps of a run on two ranks, in one start of them: that is what takes time."""

import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from llm.testing import run_ranks
from llm.train.exits import BAD_STEPS, DONE, STOPPED, Outcome, read_outcome
from llm.train.load import load_model
from tests.train import bad_gradients

pytestmark = [pytest.mark.multirank, pytest.mark.timeout(200)]
Words = Callable[..., list[str]]


def cases(rank: int, words: list[str]) -> dict[str, Any]:
    """What each case came to on this rank."""
    from llm.train import save
    from llm.train.start import pretrain

    ends: dict[str, Any] = {}
    ends["done"] = pretrain([*words, "name=done"])
    write = save.write

    def signalled(*args: Any) -> Any:
        """The last save, in which signals arrive again and again."""
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGINT):
            os.kill(os.getpid(), number)
        return write(*args)

    take = save.Saver.votes

    def voting(self: save.Saver) -> Any:
        # once: rank 1 alone, after the votes of step 2 are cast
        if rank == 1 and not asked:
            asked.append(os.kill(os.getpid(), signal.SIGUSR1))
        return take(self)

    asked: list[None] = []
    with mock.patch.object(save, "write", signalled), mock.patch.object(save.Saver, "votes", voting):
        ends["signal"] = pretrain([*words, "name=signal"])
    ends["resumed"] = pretrain([*words, "name=signal"])
    ends["late"] = pretrain([*words, "name=late", "train.max_minutes=0.0001"])
    ends |= {f"bad {stage}": with_bad_steps([*words, f"name=bad{stage}", f"parallel.zero={stage}"]) for stage in (0, 3)}
    ends["carried"] = carried_states([*words, "name=carried", "data.packing=contiguous", "model.layers.a.mixer.window=8"])
    ends["pairs"] = bad_gradients.pairs(rank)
    return ends


def with_bad_steps(words: list[str]) -> str:
    """Steps 2 and 4 are bad on rank 1: its second layer's feed-forward net is not finite there. One is allowed."""
    from llm.errors import BraidError
    from llm.train import loop
    from llm.train.engine import create_engine
    from llm.train.start import pretrain

    def spoilt(config: Any, world: Any, *more: Any) -> Any:
        engine, calls = create_engine(config, world, *more), []

        def spoil(_module: Any, _inputs: Any, out: Any) -> Any:
            calls.append(out)
            # the fourth step's batch runs again, for the diagnosis
            return out * float("inf") if world.rank == 1 and len(calls) in (2, 4, 5) else out

        engine.module.decoder.blocks[1].ffn.register_forward_hook(spoil)
        return engine

    with mock.patch.object(loop, "create_engine", spoilt):
        try:
            return pretrain([*words, "train.bad_steps.skip=1"]).sentence
        except BraidError as error:
            return f"{error.status}: {error}"


def carried_states(words: list[str]) -> list[tuple[bool, bool]]:
    """Of each step: whether it was bad, and whether the carried states are those of before. The third's loss is NaN on rank 1."""
    from llm.train import loop
    from llm.train.deepspeed_config import LossOnly
    from llm.train.engine import optimizer_step
    from llm.train.start import pretrain

    seen: list[tuple[bool, bool]] = []
    forward = LossOnly.forward

    def spoilt(self: LossOnly, *args: Any, **kwargs: Any) -> Any:
        out = forward(self, *args, **kwargs)
        return (out[0] * torch.nan, out[1]) if os.environ["RANK"] == "1" and len(seen) == 2 else out

    def watched(*args: Any) -> Any:
        carried = args[6]
        before = list(carried.states)
        result = optimizer_step(*args)
        seen.append((result.bad, all(old is new for old, new in zip(before, carried.states, strict=True))))
        return result

    with mock.patch.object(loop, "optimizer_step", watched), mock.patch.object(LossOnly, "forward", spoilt):
        pretrain(words)
    return seen


@pytest.fixture(scope="module")
def ends(manifest: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    from tests.train.conftest import MODEL, TRAIN

    runs = tmp_path_factory.mktemp("faults")
    words = [*MODEL, *TRAIN, f"data.manifest={manifest.root}", f"runs={runs}", "train.steps=5", "train.schedule.warmup=1"]
    return run_ranks(cases, 2, words, timeout=170)


def test_the_last_step_is_reached(ends: list[dict[str, Any]]) -> None:
    for end in ends:
        assert (end["done"].status, end["done"].step) == (DONE, 5)


def test_signals_during_the_save_do_not_break_it(ends: list[dict[str, Any]]) -> None:
    for end in ends:
        stopped: Outcome = end["signal"]
        assert (stopped.status, stopped.step, stopped.out_of_time) == (STOPPED, 2, False)
        assert stopped.sentence.startswith("stopped at step 2 on request (SIGUSR1), saved in ")
        assert Path(stopped.folder, "checkpoints", "latest").read_text() == "step-5\n"
        assert (end["resumed"].status, end["resumed"].step) == (DONE, 5)


def test_a_spent_budget_stops_and_saves(ends: list[dict[str, Any]]) -> None:
    for end in ends:
        assert (end["late"].status, end["late"].step, end["late"].out_of_time) == (STOPPED, 1, True)
        assert "train.max_minutes (0.0001) are over" in end["late"].sentence
        assert Path(end["late"].folder, "checkpoints", "latest").read_text() == "step-1\n"


@pytest.mark.parametrize("name", bad_gradients.configs())
def test_a_bad_step_leaves_no_trace(name: str, ends: list[dict[str, Any]]) -> None:
    for end in ends:
        spoilt, clean = end["pairs"][name]
        assert [bad for bad, _ in spoilt["said"]] == [True, False, True, True, False, False]
        assert [bad for bad, _ in clean["said"]] == [False] * 3
        norms = [norm for _, norm in spoilt["said"]]
        assert not math.isfinite(norms[0])
        assert all(0 < norm < 1e3 for norm in norms[1:])
        assert [norms[k] for k in (1, 4, 5)] == [norm for _, norm in clean["said"]]
        for (part, start, weight, state, scalars), other in zip(spoilt["held"], clean["held"], strict=True):
            assert (part, start, scalars) == (other[0], other[1], other[4])
            assert torch.equal(weight, other[2]), part
            assert state.keys() == other[3].keys()
            assert all(torch.equal(value, other[3][key]) for key, value in state.items()), part


@pytest.mark.parametrize("stage", [0, 3])
def test_too_many_bad_steps_stop_with_a_diagnosis(stage: int, ends: list[dict[str, Any]]) -> None:
    run = Path(ends[0]["done"].folder).with_name(f"bad{stage}")
    found = json.loads((run / "report" / "bad_step_4.json").read_text())
    assert found["rows"] == [24, 32]
    assert found["weight"] == [None, None]
    assert found["output"] == [None, "blocks.1.ffn"]
    assert found["gradient"][0] is None
    assert found["gradient"][1] is not None
    assert [json.loads(line)["step"] for line in (run / "report" / "bad_steps.jsonl").read_text().splitlines()] == [2, 4]
    for end in ends:
        assert end[f"bad {stage}"].startswith(f"{BAD_STEPS}: step 4 is one more")
        assert "the output of blocks.1.ffn on rank 1" in end[f"bad {stage}"]
    outcome = read_outcome(run / "outcome.json")
    assert outcome is not None
    assert outcome.status == BAD_STEPS
    model, _, info = load_model(run)
    assert info.step == 4
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record.get("bad_steps", 0) for record in records] == [0, 1, 0]


def test_a_bad_step_carries_no_state_on(ends: list[dict[str, Any]]) -> None:
    good, bad = (False, False), (True, True)
    for end in ends:
        assert end["carried"] == [good, good, bad, good, good]
