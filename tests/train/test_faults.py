"""Ends and bad steps of a run on two ranks, in one start of them: that is what takes time."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm.testing import run_ranks
from llm.train.exits import DONE, STOPPED, Outcome

pytestmark = pytest.mark.multirank
Words = Callable[..., list[str]]


def cases(rank: int, words: list[str]) -> dict[str, Any]:
    """What each case came to on this rank."""
    from unittest import mock

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
    return ends


@pytest.fixture(scope="module")
def ends(manifest: Any, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    from tests.train.conftest import MODEL, TRAIN

    runs = tmp_path_factory.mktemp("faults")
    words = [*MODEL, *TRAIN, f"data.manifest={manifest.root}", f"runs={runs}", "train.steps=5", "train.schedule.warmup=1"]
    return run_ranks(cases, 2, words, timeout=110)


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
