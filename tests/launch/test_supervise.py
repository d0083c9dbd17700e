"""The supervisor starts again what may succeed, gives up where there is no point, and leaves no process behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from launch.restarts import End, Limits, described, end_of, hopeless
from llm.train.exits import BAD_STEPS, DONE, HUNG, MEND, STOPPED, Outcome

pytestmark = [pytest.mark.multirank, pytest.mark.timeout(60)]
ROOT = Path(__file__).resolve().parents[2]
# A run without training: what it does at its n-th start is the n-th word, the last one again and again.
RUN = """
import json, os, signal, socket, subprocess, sys, time
from pathlib import Path
from llm.train.exits import Outcome
folder, plan = Path(sys.argv[1]), sys.argv[2:]
starts = folder / "starts"
n = len(starts.read_text()) if starts.exists() else 0
starts.write_text("x" * (n + 1))
(folder / "heartbeat").mkdir(exist_ok=True)
(folder / "checkpoints").mkdir(exist_ok=True)
word, _, step = plan[min(n, len(plan) - 1)].partition("@")
beat = {"step": int(step or 0), "phase": "the update", "since": 0.0, "pid": os.getpid(), "host": socket.gethostname()}
(folder / "heartbeat" / "rank-0.json").write_text(json.dumps(beat))
tell = lambda status, **more: Outcome(status, int(step or 0), f"sentence {n}", str(folder), **more).write()
tell(None)
if word == "saves":
    (folder / "checkpoints" / f"step-{step}").mkdir()
    os.kill(os.getpid(), signal.SIGKILL)
if word == "crash":
    sys.exit(9)
if word == "orphan":
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"])
    sys.exit(0)
if word == "wait":
    def stop(*_):
        tell(75)
        sys.exit(75)
    signal.signal(signal.SIGTERM, stop)
    (folder / "ready").touch()
    time.sleep(50)
if word == "late":
    tell(75, out_of_time=True)
    # as a launcher does it
    sys.exit(1)
tell(int(word))
sys.exit(1 if int(word) else 0)
"""


def supervise(folder: Path, *plan: str, **settings: float | Path) -> subprocess.Popen:
    options = [f"--{name.replace('_', '-')}={value}" for name, value in ({"pause": 0.01, "grace": 0.2} | settings).items()]
    command = [sys.executable, str(ROOT / "launch" / "supervise.py"), *options, "--", sys.executable, "-c", RUN, str(folder), *plan]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True)


def starts(folder: Path) -> int:
    return len((folder / "starts").read_text())


@pytest.mark.parametrize(
    ("plan", "status", "count", "said"),
    [
        # crashes, hangs and a rank that was asked to stop alone are started again
        (["crash@3", "77@4", "75@5", "0@9"], DONE, 4, "starting again"),
        (["2"], MEND, 1, "not started again, as the next start would end alike: sentence 0"),
        (["76@5"], BAD_STEPS, 1, "sentence 0"),
        (["late@5"], STOPPED, 1, "not started again (out of time): sentence 0"),
        (["crash@7"], 9, 3, "given up: 3 starts in a row failed at step 7"),
        (["crash"], 9, 3, "given up: 3 starts in a row failed before the first step"),
        # new checkpoints are progress
        (["crash@1", "crash@1", "saves@2", "saves@4", "saves@6", "saves@8", "0"], DONE, 7, "checkpoint step-8 is the newest"),
        (["crash@1", "crash@2", "crash@3", "crash@4"], 9, 4, "4 starts in a row ended without a new checkpoint"),
    ],
)
def test_what_is_started_again(plan: list[str], status: int, count: int, said: str, tmp_path: Path) -> None:
    process = supervise(tmp_path, *plan, max_restarts=3)
    error = process.communicate(timeout=50)[1]
    assert process.returncode == status, error
    assert starts(tmp_path) == count
    assert said in error


def test_a_signal_is_passed_on_and_nothing_starts_again(tmp_path: Path) -> None:
    process = supervise(tmp_path, "wait@5")
    end = time.monotonic() + 40
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    error = process.communicate(timeout=30)[1]
    assert process.returncode == STOPPED
    assert starts(tmp_path) == 1
    assert "not started again (SIGUSR1): sentence 0" in error


def test_orphans_are_ended_before_the_next_start(tmp_path: Path) -> None:
    process = supervise(tmp_path, "orphan@1", "wait@5")
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        time.sleep(0.05)
    assert len(psutil.Process(process.pid).children(recursive=True)) == 1
    process.terminate()
    assert "crashed (status 0) at or soon after step 1" in process.communicate(timeout=30)[1]


def test_a_runs_folder_keeps_what_its_starts_did(tmp_path: Path) -> None:
    error = supervise(tmp_path, "crash@7", "76@7", run=tmp_path).communicate(timeout=50)[1]
    assert "not started again, as the next start would end alike: sentence 1" in error
    process = supervise(tmp_path, "crash@7", "76@7", "crash@9", "0@9", run=tmp_path)
    assert process.communicate(timeout=50)[1].count("starting again") == 1
    assert process.returncode == DONE
    lines = [json.loads(line) for line in (tmp_path / "starts.jsonl").read_text().splitlines()]
    assert [line["verdict"] for line in lines] == ["again", "stop", "again", "done"]
    assert [line["at"] for line in lines] == [7, 7, 9, 9]
    # what is done is not done again
    process = supervise(tmp_path, "crash@9", run=tmp_path)
    assert "sentence 3" in process.communicate(timeout=50)[1]
    assert process.returncode == DONE
    assert starts(tmp_path) == 4
    # unless there is more to do
    process = supervise(tmp_path, "train.steps=12", "0@12", run=tmp_path)
    assert "sentence 4" in process.communicate(timeout=50)[1]
    assert starts(tmp_path) == 5


@pytest.mark.parametrize("known", [True, False])
def test_a_runs_file_stop_ends_its_supervisor(known: bool, tmp_path: Path) -> None:
    """Also one that was not told which folder that is."""
    process = supervise(tmp_path, "wait@5", **({"run": tmp_path} if known else {}))
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        time.sleep(0.05)
    # as its ranks do within seconds
    (tmp_path / "stop").touch()
    os.kill(json.loads((tmp_path / "heartbeat" / "rank-0.json").read_text())["pid"], signal.SIGTERM)
    error = process.communicate(timeout=30)[1]
    assert process.returncode == STOPPED
    assert "not started again (cancelled): sentence 0" in error
    assert (tmp_path / "stop").exists()


def test_a_command_that_trains_nothing_has_failed() -> None:
    assert end_of(None, 0).status == 1
    assert end_of(None, -9).status == 137
    assert end_of(None, MEND).status == MEND


@pytest.mark.parametrize(
    ("status", "said"),
    [
        *[(status, "SIGKILL, maybe out of memory") for status in (-9, 137, 247)],
        *[(status, "SIGSEGV") for status in (-11, 139, 245)],
        *[(status, f"status {status}") for status in (0, 1, 75, 255)],
    ],
)
def test_a_status_says_which_signal_ended_a_command(status: int, said: str) -> None:
    assert described(status).endswith(said)


def test_failures_at_different_steps_are_no_pattern() -> None:
    limits = Limits(restarts=5, same_step=2)
    failures = [End(HUNG, at, 0, "") for at in (5, 6, 5)]
    assert hopeless(failures, limits) is None
    assert hopeless([*failures, failures[-1]], limits) == "2 starts in a row failed at step 5"


def test_statuses_of_a_run_win_over_its_launcher(tmp_path: Path) -> None:
    assert end_of(Outcome(DONE, 5, "", str(tmp_path)), 1).status == DONE
    assert end_of(Outcome(None, 0, "", str(tmp_path)), 0).status == 1
