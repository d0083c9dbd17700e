"""Everything else that happens to jobs; each time the weights are those of an undisturbed run, bit for bit."""

import signal
from pathlib import Path

import pytest

from tests.slurm.cluster import wait_until
from tests.slurm.runs import STEPS, Runs, assert_same_weights

pytestmark = [pytest.mark.multirank, pytest.mark.slow, pytest.mark.timeout(1500)]


def warn(runs: Runs, job: str) -> None:
    """As SLURM does before a job's time is over."""
    runs.cluster.run("scancel", "--signal=USR1", "--batch", job)


def test_two_requeues(runs: Runs, whole: Path) -> None:
    job = runs.submit("run")
    for number, step in enumerate((40, 120)):
        runs.reach("run", step)
        warn(runs, job)
        assert runs.end_start("run", number)["verdict"] == "later"
        runs.cluster.start_now(job, number + 1)
    runs.done("run")
    assert_same_weights(runs.path("run"), whole)
    # no step twice, none left out
    stops = [start["saved"] for start in runs.starts("run")[:2]]
    assert runs.positions("run") == [(step, 8 * step) for step in stops]
    assert [record["step"] for record in runs.records("run")] == sorted({*range(5, STEPS + 1, 5), *stops})


def test_preemption_with_grace(runs: Runs, whole: Path) -> None:
    job = runs.submit("run")
    runs.reach("run", 40)
    runs.cluster.run("sbatch", "-p", "urgent", "-N2", "--exclusive", "-t1", "--output=/dev/null", "--wrap", "sleep 1")
    preempted = runs.end_start("run", 0)
    assert (preempted["asked"], preempted["status"], preempted["verdict"]) == ("preempted", 75, "later")
    runs.cluster.start_now(job)
    runs.done("run")
    assert_same_weights(runs.path("run"), whole)


def test_scancel_and_resume(runs: Runs, whole: Path) -> None:
    job = runs.submit("run")
    runs.reach("run", 40)
    runs.cluster.run("scancel", job)
    cancelled = runs.end_start("run", 0)
    assert (cancelled["asked"], cancelled["status"], cancelled["verdict"]) == ("cancelled", 75, "stop")
    runs.cluster.wait_for(job, "CANCELLED")
    assert runs.command("resume", str(runs.path("run"))).strip() != job
    runs.done("run")
    assert_same_weights(runs.path("run"), whole)


def test_a_dead_node(runs: Runs, whole: Path) -> None:
    """SLURM starts the job again by itself: within the second that the node came back, it would never make a step for it."""
    job = runs.submit("run")
    runs.reach("run", 60)
    runs.cluster.kill_node("n2")
    wait_until(lambda: runs.cluster.job(job)["Restarts"] == "1", 400, lambda: runs.told("run"))
    runs.cluster.start_node("n2")
    runs.done("run", 600)
    assert_same_weights(runs.path("run"), whole)


def test_a_stopped_rank(runs: Runs, whole: Path) -> None:
    """Nothing of SLURM's notices it; the other ranks do."""
    job = runs.submit("run", "train.hang_minutes=0.5")
    runs.reach("run", 60)
    runs.ranks("run", "n2")[0].send_signal(signal.SIGSTOP)
    hung = runs.end_start("run", 0, timeout=400)
    assert (hung["status"], hung["verdict"]) == (77, "again")
    assert "none came of rank(s) 1" in hung["sentence"]
    runs.done("run")
    runs.cluster.wait_for(job, "COMPLETED")
    assert_same_weights(runs.path("run"), whole)


def test_a_chain_of_singletons(runs: Runs, whole: Path) -> None:
    first = int(runs.submit("run", "--chain", "4"))
    for number, step in enumerate((40, 120)):
        runs.reach("run", step)
        warn(runs, str(first + number))
        assert runs.end_start("run", number)["verdict"] == "later"
    runs.done("run")
    assert [start["job"] for start in runs.starts("run")] == [str(first + k) for k in range(3)]
    # what is left of the chain is taken out of the queue
    runs.cluster.wait_for(str(first + 2), "COMPLETED")
    runs.cluster.wait_for(str(first + 3), "CANCELLED", timeout=60)
    assert_same_weights(runs.path("run"), whole)


def test_the_cap_on_requeues(runs: Runs) -> None:
    job = runs.submit("run", "slurm.max_requeues=1")
    runs.reach("run", 40)
    warn(runs, job)
    runs.cluster.start_now(job)
    runs.reach("run", 80)
    warn(runs, job)
    last = runs.end_start("run", 1)
    assert (last["status"], last["verdict"]) == (75, "stop")
    assert "queued again 1 time(s), as often as slurm.max_requeues allows" in runs.told("run")
    runs.cluster.wait_for(job, "FAILED")


def test_the_time_limit(runs: Runs) -> None:
    """SLURM's own signal, or the clock of the run, whichever is first; both are in time."""
    job = runs.submit("run", "train.steps=100000", "slurm.hours=0.034", "slurm.warning_seconds=60")
    ended = runs.end_start("run", 0, timeout=300)
    assert (ended["status"], ended["verdict"]) == (75, "later")
    assert ended["asked"] == "USR1" or ended["out_of_time"]
    wait_until(lambda: runs.cluster.job(job)["Restarts"] == "1", 60, "the job is queued again")


def test_a_run_that_fails_at_one_step_is_given_up(runs: Runs) -> None:
    job = runs.submit("run", "train.checkpoint_every=0", "slurm.same_step=2")
    for _ in range(2):
        wait_until(lambda: bool(runs.ranks("run", "n1")), 200, lambda: runs.told("run"))
        runs.ranks("run", "n1")[0].send_signal(signal.SIGKILL)
        wait_until(lambda: not runs.ranks("run", "n1"), 100, lambda: runs.told("run"))
    assert runs.end_start("run", 1)["verdict"] == "stop"
    assert "given up: 2 starts in a row failed before the first step" in runs.told("run")
    runs.cluster.wait_for(job, "FAILED")
