"""`braid-watch` on processes that beat as ranks do: it lets them be, and finds the one that is stopped, from outside."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from llm.train.exits import HUNG, NAME, Outcome, read_outcome
from tests.checkout import ROOT, environment

pytestmark = [pytest.mark.multirank, pytest.mark.timeout(60)]
# Two ranks of a run, started by the first. What the second does after its first heartbeat is the last word.
RANKS = """
import faulthandler, json, os, signal, socket, subprocess, sys, time
from pathlib import Path
run, rank, word = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
(run / "heartbeat").mkdir(exist_ok=True)
faulthandler.register(signal.SIGUSR2, (run / f"heartbeat/rank-{rank}.stack").open("w"))
other = None if rank else subprocess.Popen([sys.executable, sys.argv[4], str(run), "1", word])
def where_it_is():
    for k in range(10 if word in ("goes on", "stays") else 100):
        beat = {"step": 3 + k, "phase": "the update", "pid": os.getpid(), "host": socket.gethostname(), "of": 2}
        (run / f"heartbeat/rank-{rank}.json").write_text(json.dumps(beat))
        if rank == 1 and word == "stops":
            os.kill(os.getpid(), signal.SIGSTOP)
        if rank == 1 and word == "dies":
            os._exit(0)
        time.sleep(0.1)
if word != "never":
    where_it_is()
if word == "stays":
    sys.path.insert(0, os.environ["ROOT"])
    from llm.train.exits import Outcome
    Outcome(0, 17, "step 17 of 17", str(run)).write()
if word in ("stays", "never"):
    time.sleep(100)
sys.exit(3)
"""


def watch(run: Path, word: str, *more: str) -> subprocess.CompletedProcess:
    (run / "ranks.py").write_text(RANKS)
    options = ["--poll=0.1", "--silence=0.05", "--start=0.3", *more]
    command = [sys.executable, str(run / "ranks.py"), str(run), "0", word, str(run / "ranks.py")]
    watcher = [sys.executable, str(ROOT / "launch" / "watch.py"), str(run), *options, "--", *command]
    env = {name: value for name, value in environment(ROOT=str(ROOT)).items() if not name.startswith("SLURM_")}
    done = subprocess.run(watcher, env=env, capture_output=True, text=True, timeout=50, check=False)
    left = [process for process in psutil.process_iter(["cmdline"]) if str(run / "ranks.py") in (process.info["cmdline"] or [])]
    assert left == []
    return done


def test_a_run_without_a_hang_keeps_its_status(tmp_path: Path):
    done = watch(tmp_path, "goes on")
    assert done.returncode == 3, done.stderr
    assert not (tmp_path / "stacks").exists()


@pytest.mark.parametrize(("word", "known"), [("stops", "stopped"), pytest.param("dies", "zombie", marks=pytest.mark.slow)])
def test_a_rank_that_is_stopped_or_dead_ends_the_run(tmp_path: Path, word: str, known: str):
    (tmp_path / "heartbeat").mkdir()
    # of an earlier start, when there were more ranks
    (tmp_path / "heartbeat" / "rank-7.json").write_text("{}")
    began = time.monotonic()
    done = watch(tmp_path, word)
    assert done.returncode == HUNG, done.stderr
    assert time.monotonic() - began < 25
    (stacks,) = (tmp_path / "stacks").iterdir()
    assert known in (stacks / "rank-1.txt").read_text()
    assert "where_it_is" in (stacks / "rank-0.txt").read_text()
    assert ("where_it_is" in (stacks / "rank-1.txt").read_text()) == (word == "stops")
    outcome = read_outcome(tmp_path / NAME)
    assert outcome is not None
    assert outcome.status == HUNG
    assert outcome.sentence.startswith("hung: nothing was heard of rank(s) 1 on ")
    assert outcome.sentence in done.stderr


@pytest.mark.slow
def test_a_run_that_is_over_but_does_not_end_is_ended_and_keeps_its_outcome(tmp_path: Path):
    done = watch(tmp_path, "stays")
    assert done.returncode == 0, done.stderr
    outcome = read_outcome(tmp_path / NAME)
    assert isinstance(outcome, Outcome)
    assert outcome.step == 17


@pytest.mark.slow
def test_a_start_that_never_trains_is_ended(tmp_path: Path):
    done = watch(tmp_path, "never", "--start=0.05")
    assert done.returncode == HUNG
    assert "hung: no rank began to train within 0.05 minutes" in done.stderr
