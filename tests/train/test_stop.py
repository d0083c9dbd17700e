"""Stopping in time: signals, a lost launcher, a time budget; and how an end is told."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llm.errors import ConfigError
from llm.train import exits
from llm.train.guard import Guard
from llm.train.launcher import starts_ranks
from llm.train.run_folder import RunFolder
from llm.train.stop import SIGNALS, StopRequest


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_does_nothing_more(number: signal.Signals) -> None:
    former = signal.getsignal(number)
    with StopRequest() as stop:
        assert not stop
        for each in (number, number, signal.SIGTERM):
            os.kill(os.getpid(), each)
        assert stop
        assert stop.reason == number.name
    assert signal.getsignal(number) is former


@pytest.mark.parametrize(
    ("gone", "save", "asks"),
    [
        # of 10 minutes: a minute is kept for a first save, else 1.5 times the longest one; and 30 s for the next step
        (500, None, False),
        (520, None, True),
        (520, 20.0, False),
        (550, 20.0, True),
    ],
)
def test_a_time_budget_leaves_room_to_save(gone: float, save: float | None, asks: bool) -> None:
    stop = StopRequest(minutes=10, began=time.monotonic() - gone)
    stop.check_time(30, save)
    assert bool(stop) is stop.out_of_time is asks


def test_without_a_budget_time_does_not_matter() -> None:
    stop = StopRequest(began=time.monotonic() - 1e9)
    stop.check_time(1e9, 1e9)
    assert not stop


@pytest.mark.parametrize(("minutes", "law"), [(None, "the job's minutes"), (60, "the job's minutes"), (1, "train.max_minutes (1)")])
def test_a_jobs_end_is_a_budget_too_and_the_first_end_counts(minutes: float | None, law: str, monkeypatch) -> None:
    monkeypatch.setenv("BRAID_DEADLINE", str(time.time() + 600))
    stop = StopRequest(minutes)
    stop.check_time(30, 10.0)
    assert not stop
    stop.check_time(620, 10.0)
    assert stop.out_of_time
    assert str(stop.reason).startswith(f"{law} are over")


def test_the_file_stop_keeps_a_run_from_starting(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.check_stop()
    folder.stop.touch()
    with pytest.raises(ConfigError, match=r"stop is there, so this run does not start; remove it"):
        folder.check_stop()


@pytest.mark.timeout(60)
def test_the_file_stop_asks_a_run_to_stop(tmp_path: Path) -> None:
    guard = guard_of(tmp_path)
    with guard:
        (tmp_path / "stop").touch()
        while not guard.stop:
            time.sleep(0.05)
    assert guard.stop.reason == f"{tmp_path / 'stop'} is there"


@pytest.mark.parametrize(
    ("command", "is_one"),
    [
        ("/usr/bin/python3 -u -m deepspeed.launcher.launch --world_info=x train.py", True),
        ("/env/bin/python /env/bin/deepspeed --num_accelerators 2 launch/pretrain.py", True),
        ("/env/bin/python /env/bin/torchrun --nproc-per-node 2 launch/pretrain.py", True),
        ("python -m torch.distributed.run launch/pretrain.py", True),
        ("python launch/supervise.py -- deepspeed x.py", True),
        ("/env/bin/python launch/pretrain.py runs/deepspeed", False),
        ("bash -c deepspeed", False),
        ("vim deepspeed", False),
        ("", False),
    ],
)
def test_what_a_launcher_is(command: str, is_one: bool) -> None:
    assert starts_ranks(command.split()) is is_one


LAUNCHER = """
import subprocess, sys
print(subprocess.Popen([sys.executable, "-c", sys.argv[1], *sys.argv[2:]]).pid, flush=True)
sys.stdin.read()
"""
ORPHAN = """
import sys, time
from pathlib import Path
from tests.train.test_stop import guard_of
with guard_of(Path(sys.argv[1])) as guard:
    Path(sys.argv[1], "ready").touch()
    while not guard.stop:
        time.sleep(0.05)
    Path(sys.argv[1], "reason").write_text(guard.stop.reason)
"""


def guard_of(folder: Path) -> Guard:
    import torch

    from llm.train.world import World

    return Guard(RunFolder(folder), World(0, 1, torch.device("cpu")), 10, StopRequest(), poll=0.1)


@pytest.mark.multirank
def test_an_orphan_asks_to_stop(tmp_path: Path) -> None:
    script = tmp_path / "torchrun"
    script.write_text(LAUNCHER)
    root = str(Path(__file__).resolve().parents[2])
    command: list[Any] = [sys.executable, script, ORPHAN, tmp_path]
    launcher = subprocess.Popen(command, stdin=subprocess.PIPE, cwd=root, env={**os.environ, "PYTHONPATH": root})
    try:
        wait_for(tmp_path / "ready")
        time.sleep(0.3)
        assert not (tmp_path / "reason").exists()
    finally:
        launcher.kill()
        launcher.communicate(timeout=20)
    wait_for(tmp_path / "reason")
    assert (tmp_path / "reason").read_text() == "its launcher is gone"


def wait_for(path: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.05)


def test_an_outcome_is_told_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "told.json"
    monkeypatch.setenv(exits.TOLD, str(told))
    assert exits.read_outcome(told) is None
    exits.Outcome(exits.STOPPED, 7, "stopped", str(tmp_path)).write()
    outcome = exits.read_outcome(told)
    assert outcome == exits.read_outcome(tmp_path / exits.NAME)
    assert outcome is not None
    assert (outcome.status, outcome.step, outcome.sentence) == (75, 7, "stopped")
    assert abs(outcome.time - time.time()) < 60
    # a folder that cannot be written hides no other error
    exits.Outcome(exits.MEND, 0, "no folder", str(tmp_path / "none")).write()


def test_statuses_import_no_torch() -> None:
    root = Path(__file__).resolve().parents[2]
    code = "import sys, llm.train.exits; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=root, timeout=60).returncode == 0
