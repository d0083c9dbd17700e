"""Runs a training command and watches its ranks from outside; ends it when one of them has gone silent.

A rank that hangs in Python is found, and its run ended, by the threads beside the ranks (llm/train/guard.py). They cannot see a rank
that is stopped, a node that is dead, a start that never gets to training, nor an end that never ends.
"""

import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from launch.nodes.job import in_job, nodes, steps
from launch.nodes.silence import Heartbeats
from launch.nodes.stacks import SECONDS, collect
from llm.train.exits import HUNG, NAME, Outcome, read_outcome

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
SCRIPT = Path(__file__).resolve().parents[1] / "watch.py"
# for a step of a job to end after it was told to
GRACE = 30


@dataclass(frozen=True)
class Patience:
    """Minutes without a heartbeat of a rank that is under way, and until the first. poll: seconds between looks."""

    silence: float = 5.0
    start: float = 45.0
    poll: float = 10.0


class Watcher:
    """Of one start."""

    def __init__(self, run: Path, command: list[str], patience: Patience):
        self.run_folder, self.command, self.patience = run, command, patience
        self.began = time.time()

    def run(self) -> int:
        """The command's exit status, 77 after a hang, or that of the run where only its end hung."""
        heartbeats = Heartbeats(self.run_folder)
        process = subprocess.Popen(self.command, start_new_session=True)
        for number in SIGNALS:
            signal.signal(number, lambda number, _: self._pass_on(process, number, _))
        while True:
            with suppress(subprocess.TimeoutExpired):
                status = process.wait(self.patience.poll)
                # as shells say it
                return 128 - status if status < 0 else status
            heartbeats.look()
            silent = heartbeats.silent(60 * self.patience.silence, 60 * self.patience.start)
            if silent or silent is None:
                return self._end(process, heartbeats, silent)

    def _pass_on(self, process: subprocess.Popen, number: int, _: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            process.send_signal(number)

    def _end(self, process: subprocess.Popen, heartbeats: Heartbeats, silent: list[int] | None) -> int:
        outcome = read_outcome(self.run_folder / NAME)
        if outcome is not None and outcome.status is not None and outcome.time >= self.began:
            say(f"the run ended ({outcome.sentence}), but its processes did not; ending them")
            stop(process, heartbeats)
            return outcome.status
        folder = self.run_folder / "stacks" / f"watched-step-{heartbeats.step + 1}-{time.strftime('%Y%m%dT%H%M%S')}"
        try:
            everywhere(self.run_folder, folder)
        finally:
            stop(process, heartbeats)
        sentence = (
            f"{described(heartbeats, silent, self.patience)}; what is known of each rank is in {folder}; checkpoints are untouched"
        )
        say(sentence)
        Outcome(HUNG, heartbeats.step, sentence, str(self.run_folder)).write()
        return HUNG


def described(heartbeats: Heartbeats, silent: list[int] | None, patience: Patience) -> str:
    if silent is None:
        return f"hung: no rank began to train within {patience.start:g} minutes (--start)"
    hosts = sorted({heartbeats.beats[rank].host for rank in silent if rank in heartbeats.beats})
    where = f" on {', '.join(hosts)}" if hosts else ""
    ranks = ", ".join(map(str, silent[:8])) + (f" and {len(silent) - 8} more" if len(silent) > 8 else "")
    minutes = f"{patience.silence:g} minutes (--silence)"
    return f"hung: nothing was heard of rank(s) {ranks}{where} for {minutes}, after step {heartbeats.step}"


def everywhere(run: Path, folder: Path) -> None:
    """Stacks of all nodes, side by side; a dead node does not answer, and is not waited for."""
    if not in_job():
        collect(run, folder)
        return
    here = [sys.executable, str(SCRIPT), str(run.resolve()), "--collect", str(folder.resolve())]
    step = ["srun", "--overlap", "--nodes=1", "--ntasks=1", "--ntasks-per-node=1", "--input=none", "--quiet"]
    tasks = [subprocess.Popen([*step, f"--nodelist={host}", *here], start_new_session=True) for host in nodes()]
    end = time.monotonic() + 2 * SECONDS
    for task in tasks:
        with suppress(subprocess.TimeoutExpired):
            task.wait(max(0.0, end - time.monotonic()))
        if task.poll() is None:
            kill(task.pid)


def stop(process: subprocess.Popen, heartbeats: Heartbeats) -> None:
    """The command and all ranks, at once."""
    if in_job():
        for step in steps():
            subprocess.run(["scancel", "--signal=KILL", step], check=False)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    # ranks may have lost their parents
    for pid in (process.pid, *(beat.pid for beat in heartbeats.beats.values() if beat.host == socket.gethostname())):
        kill(pid)
    process.wait()


def kill(pid: int) -> None:
    """A process and all that it started."""
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in [*parent.children(recursive=True), parent]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def say(sentence: str) -> None:
    print(f"watch: {sentence}", file=sys.stderr, flush=True)
