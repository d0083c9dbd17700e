"""A rank that hangs: all ranks' stacks are written, all end with 77, and one sentence says where it was."""

import os
import pickle
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llm.testing import RankFailed, run_ranks
from llm.train import exits

pytestmark = pytest.mark.multirank
Words = Callable[..., list[str]]


def never_read() -> None:
    """Where the stuck rank is."""
    time.sleep(600)


def train_until_stuck(rank: int, words: list[str], how: str) -> None:
    """Rank 1 does not come back from reading the third step's batch. It is told the manifest, which one rank of a node reads."""
    from llm.data import Batches, Manifest
    from llm.train import guard
    from llm.train.start import pretrain

    guard.Guard.__init__.__defaults__ = (0.2,)
    if rank == 1:
        Manifest.load = None  # type: ignore[method-assign, assignment]
    take = Batches.__next__

    def taking(self: Batches) -> Any:
        if rank == 1 and self.consumed == 2 * self.batch:
            if how == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            never_read()
        return take(self)

    Batches.__next__ = taking  # type: ignore[method-assign]
    pretrain(words)


@pytest.mark.parametrize("how", ["sleep", pytest.param("stop", marks=pytest.mark.slow)])
def test_a_hanging_rank_ends_all_with_their_stacks(how: str, words: Words, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    settings = words("train.steps=6", "train.hang_minutes=0.1", "train.checkpoint_every=1", "train.checkpoint_async=false")
    began = time.monotonic()
    with pytest.raises(RankFailed, match="exit code 77" if how == "sleep" else "rank 0 died with exit code 77"):
        run_ranks(train_until_stuck, 2, settings, how, timeout=80, connect=False)
    assert time.monotonic() - began < 60
    run = tmp_path / "runs" / "tiny"
    (stacks,) = (run / "stacks").iterdir()
    assert "all_reduce" in (stacks / "rank-0.txt").read_text()
    # what torch's own analyser reads
    recorded = pickle.loads((stacks / "collectives-0").read_bytes())["entries"]
    assert recorded[-1]["profiling_name"] == "gloo:all_reduce"
    outcome = exits.read_outcome(run / exits.NAME)
    assert outcome is not None
    assert outcome.status == exits.HUNG
    assert outcome.step == 2
    assert outcome.sentence in capfd.readouterr().err
    if how == "sleep":
        assert "in never_read" in (stacks / "rank-1.txt").read_text()
        assert "none came" not in outcome.sentence
    else:
        assert "none came of rank(s) 1, stopped or dead" in outcome.sentence
        assert "hung: rank 0 has been in the update of step 3 for 0.1" in outcome.sentence
    assert (run / "checkpoints" / "latest").read_text() == "step-2\n"
    assert (run / "heartbeat" / "rank-1.json").is_file()
