"""A run folder has one owner: a second start is refused while the first lives, and whatever ended that, it is no obstacle."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from launch.jobs.folder import JobFolder
from launch.jobs.starts import Place, begin
from launch.restarts import Limits, Word
from llm.train import owner
from llm.train.exits import TOLD, read_outcome
from llm.train.owner import Held, Owner, look, take, wait_until_free
from llm.train.start import pretrain
from tests.checkout import environment

pytestmark = [pytest.mark.multirank, pytest.mark.timeout(60)]
# Owns a run until it is killed, or another does.
HOLDER = """
import sys, time
from pathlib import Path
from llm.train import owner
owner.RENEW = 0.2
owner.take(Path(sys.argv[1]))
time.sleep(50)
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner, "RENEW", 0.2)
    monkeypatch.setattr(owner, "OVER", 2.0)
    monkeypatch.setattr(owner, "POLL", 0.05)


@pytest.fixture
def held(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """A start of the run in `tmp_path`/runs/tiny."""
    run = tmp_path / "runs" / "tiny"
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(run)], env=environment(SLURM_JOB_ID="17"))
    while not (run.is_dir() and (seen := look(run)) and seen.owner):
        assert process.poll() is None
        time.sleep(0.02)
    yield process
    process.kill()
    process.wait()


def elsewhere(run: Path) -> None:
    """As the owner is seen from another host."""
    told = json.loads((run / owner.NAME).read_text())
    (run / owner.NAME).write_text(json.dumps(told | {"place": "another boot"}))


def test_a_second_start_is_told_who_trains_before_it_joins_anything(words, held, tmp_path, monkeypatch) -> None:
    run, told = tmp_path / "runs" / "tiny", tmp_path / "outcome.json"
    monkeypatch.setenv(TOLD, str(told))
    with pytest.raises(Held) as caught:
        pretrain(words())
    assert f"{run} is being trained by process {held.pid} of job 17 on " in str(caught.value)
    assert f"`touch {run}/stop`" in str(caught.value)
    # its watcher is told, the run folder is as it was
    outcome = read_outcome(told)
    assert (outcome.status, outcome.sentence, outcome.trained) == (1, str(caught.value), False)
    assert [path.name for path in run.iterdir()] == [owner.NAME]
    # a job waits for another time, and does not take the other start for one that was lost
    folder = JobFolder(run)
    (folder.logs / "16-0").mkdir(parents=True)
    (folder.logs / "16-0" / "began.json").write_text("{}")
    word, why = begin(folder, Place("18"), Limits(), requeues=2)
    assert (word, why) == (Word.LATER, str(caught.value))
    assert not folder.starts.exists()
    word, why = begin(folder, Place("18", requeues=2), Limits(), requeues=2)
    assert word is Word.STOP
    assert "as often as slurm.max_requeues allows" in why
    # as it is while it cannot renew anything
    held.send_signal(signal.SIGSTOP)
    with pytest.raises(Held, match=f"process {held.pid}"):
        wait_until_free(run)


def test_after_a_kill_the_next_start_waits_for_nothing_and_finds_no_heartbeats(held, tmp_path, monkeypatch) -> None:
    run = tmp_path / "runs" / "tiny"
    beat = run / "heartbeat" / "rank-3.json"
    beat.parent.mkdir()
    beat.touch()
    monkeypatch.setattr(owner, "OVER", 1e9)
    held.kill()
    began = time.monotonic()
    # not even its parent has looked yet
    hold = take(run)
    assert time.monotonic() - began < 1
    assert not beat.exists()
    assert look(run).owner == hold.owner
    time.sleep(0.5)
    renewed = look(run).renewed
    time.sleep(0.5)
    assert look(run).renewed > renewed
    hold.release()
    assert look(run) is None


def test_a_copy_of_a_run_under_way_is_nobody_s(held, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(owner, "OVER", 1e9)
    shutil.copytree(tmp_path / "runs" / "tiny", tmp_path / "runs" / "copy")
    take(tmp_path / "runs" / "copy").release()


def test_from_another_host_renewals_say_that_it_lives(held, tmp_path, monkeypatch) -> None:
    run = tmp_path / "runs" / "tiny"
    monkeypatch.setattr(owner, "place", lambda: "another boot")
    with pytest.raises(Held, match=f"process {held.pid}"):
        take(run)
    # its ranks count for it
    held.kill()
    held.wait()
    (run / "heartbeat").mkdir()
    beats = 'while sleep 0.2; do touch "$0"; done'
    rank = subprocess.Popen(["bash", "-c", beats, str(run / "heartbeat" / "rank-1.json")])
    with pytest.raises(Held):
        take(run)
    rank.kill()
    rank.wait()
    # a node that died a moment ago is waited for, one that died before that is not
    began = time.monotonic()
    wait_until_free(run)
    assert 0.5 < time.monotonic() - began < 6
    began = time.monotonic()
    take(run).release()
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("text", ["", '{"pid": 1', "[]", '{"pid": 1}'])
def test_a_damaged_file_is_nobody_s(text: str, tmp_path: Path) -> None:
    """A loss of power may leave that."""
    (tmp_path / owner.NAME).write_text(text)
    os.utime(tmp_path / owner.NAME, (time.time() - 60, time.time() - 60))
    take(tmp_path).release()
    assert not (tmp_path / owner.NAME).exists()


def test_a_process_of_the_same_number_is_another(tmp_path: Path) -> None:
    former = replace(Owner.this(tmp_path), pid=os.getppid(), began="1")
    (tmp_path / owner.NAME).write_text(json.dumps(asdict(former)))
    take(tmp_path).release()


def test_who_was_taken_for_dead_ends_itself(held, tmp_path) -> None:
    run = tmp_path / "runs" / "tiny"
    held.send_signal(signal.SIGSTOP)
    elsewhere(run)
    hold = take(run)
    held.send_signal(signal.SIGCONT)
    assert held.wait(20) == Held.status
    assert look(run).owner == hold.owner
    hold.release()
