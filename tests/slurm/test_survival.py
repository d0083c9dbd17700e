"""Runs on a real SLURM, disturbed in every way that clusters know, end with the weights of an undisturbed run, bit for bit."""

import signal
from pathlib import Path

import pytest

from tests.slurm.runs import STEPS, Runs, assert_same_weights

pytestmark = [pytest.mark.multirank, pytest.mark.timeout(900)]


def test_a_killed_rank_and_a_requeue(runs: Runs, whole: Path) -> None:
    """Within the job at first; then, warned twice of its end, in the same job queued again."""
    job = runs.submit("run")
    runs.reach("run", 55)
    runs.ranks("run", "n2")[0].send_signal(signal.SIGKILL)
    killed = runs.end_start("run", 0)
    assert (killed["verdict"], killed["asked"]) == ("again", None)
    assert "crashed" in killed["sentence"]
    runs.reach("run", 110)
    for _ in range(2):
        runs.cluster.run("scancel", "--signal=USR1", "--batch", job)
    warned = runs.end_start("run", 1)
    assert (warned["status"], warned["asked"], warned["verdict"]) == (75, "USR1", "later")
    runs.cluster.start_now(job)
    runs.done("run")
    assert runs.cluster.wait_for(job, "COMPLETED")["Restarts"] == "1"
    assert_same_weights(runs.path("run"), whole)
    # after a kill from the last checkpoint, after a warning from where it stopped; 8 sequences a step
    (first, at_first), (second, at_second) = runs.positions("run")
    assert (first, second) == (killed["saved"], warned["saved"])
    assert (at_first, at_second) == (8 * first, 8 * second)
    assert [record["step"] for record in runs.records("run")] == sorted({*range(5, STEPS + 1, 5), warned["saved"]})
