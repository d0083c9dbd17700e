"""Watches the ranks of a start from outside, and ends what has gone silent.

A rank that hangs in Python is found, and its run ended, by the threads beside the ranks (llm/train/guard.py). They cannot see that
a rank is stopped or its node dead, that a start never gets to training, or that an end never ends.
"""

import math
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from launch.nodes.silence import Heartbeats
from launch.nodes.stacks import collect
from llm.train.exits import HUNG, NAME, Outcome, read_outcome

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@dataclass(frozen=True)
class Patience:
    """Minutes without a heartbeat of a rank that is under way, and until the first. poll: seconds between looks."""

    silence: float = 5.0
    start: float = 45.0
    poll: float = 10.0


@dataclass(frozen=True)
class Hang:
    """status: 77, or that of a run which is over and does not end. stacks: where they belong."""

    status: int
    sentence: str
    stacks: Path


class Watcher:
    """Of one start of a run, which begins now."""

    def __init__(self, run: Path, patience: Patience):
        self.folder, self.patience = run, patience
        self.heartbeats, self.began = Heartbeats(run), time.time()

    def look(self) -> Hang | None:
        """None as long as nothing is wrong."""
        self.heartbeats.look()
        silent = self.heartbeats.silent(60 * self.patience.silence, 60 * self.patience.start)
        if silent == []:
            return None
        stacks = self.folder / "stacks" / f"silent-step-{self.heartbeats.step + 1}-{time.strftime('%Y%m%dT%H%M%S')}"
        outcome = read_outcome(self.folder / NAME)
        if outcome is not None and outcome.status is not None and outcome.time >= self.began:
            return Hang(outcome.status, f"its processes do not end, although the run did: {outcome.sentence}", stacks)
        sentence = f"{self._said(silent)}; what is known of each rank is in {stacks}; checkpoints are untouched"
        Outcome(HUNG, self.heartbeats.step, sentence, str(self.folder), trained=silent is not None).write()
        return Hang(HUNG, sentence, stacks)

    def _said(self, silent: list[int] | None) -> str:
        if silent is None:
            return f"hung: no rank began to train within {self.patience.start:g} minutes (--start)"
        beats = self.heartbeats.beats
        hosts = sorted({beats[rank].host for rank in silent if rank in beats})
        ranks = ", ".join(map(str, silent[:8])) + (f" and {len(silent) - 8} more" if len(silent) > 8 else "")
        where = f"{ranks} on {', '.join(hosts)}" if hosts else ranks
        minutes = f"{self.patience.silence:g} minutes (--silence)"
        return f"hung: nothing was heard of rank(s) {where} for {minutes}, after step {self.heartbeats.step}"


def watch(run: Path, patience: Patience, of: int | None) -> Hang | None:
    """Until there is a hang, or None when the process `of` has ended."""
    watcher, looked = Watcher(run, patience), -math.inf
    while of is None or psutil.pid_exists(of):
        if time.monotonic() - looked > patience.poll:
            hang, looked = watcher.look(), time.monotonic()
            if hang is not None:
                say(hang.sentence)
                return hang
        # a job's script ends with this process, so it does not outlive the step for long
        time.sleep(min(1.0, patience.poll))
    return None


def watched(run: Path, command: list[str], patience: Patience) -> int:
    """The command's exit status, or the hang's, after which nothing of it is left. Signals are passed on to it."""
    watcher = Watcher(run, patience)
    process = subprocess.Popen(command, start_new_session=True)
    for number in SIGNALS:
        signal.signal(number, lambda number, _: process.send_signal(number))
    while True:
        with suppress(subprocess.TimeoutExpired):
            status = process.wait(patience.poll)
            # as shells say it
            return 128 - status if status < 0 else status
        hang = watcher.look()
        if hang is not None:
            say(hang.sentence)
            break
    try:
        collect(run, hang.stacks)
    finally:
        # ranks may have lost their parents
        ranks = [beat.pid for beat in watcher.heartbeats.beats.values() if beat.host == socket.gethostname()]
        for pid in (process.pid, *ranks):
            kill(pid)
        process.wait()
    return hang.status


def kill(pid: int) -> None:
    """A process and all that it started."""
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in [*parent.children(recursive=True), parent]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


def say(sentence: str) -> None:
    print(f"watch: {sentence}", file=sys.stderr, flush=True)
