"""Runs a training command again and again until it is done, or until there is no point."""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType

import psutil

from launch.restarts import CANCELLED, End, Limits, Verdict, Word, end_of, heartbeats, judge
from llm.train.exits import STOP, STOPPED, TOLD, read_outcome

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
PR_SET_CHILD_SUBREAPER = 36


class Supervisor:
    """Of one command. Its processes become this one's children when their parents die, so that none outlives a restart."""

    def __init__(self, command: list[str], limits: Limits):
        self.command, self.limits = command, limits
        self.asked: str | None = None
        self.ends: list[End] = []
        self._place = tempfile.TemporaryDirectory(prefix="braid-supervise-")
        self.told = Path(self._place.name) / "outcome.json"
        # Linux alone; elsewhere orphans end themselves
        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def run(self) -> int:
        """Until it is done, stopped or given up. Returns the exit status."""
        for number in SIGNALS:
            signal.signal(number, self._pass_on)
        while True:
            verdict = self.attempt()
            if verdict.word is not Word.AGAIN:
                return say(verdict.status, verdict.why)
            say(verdict.status, f"{verdict.why}; starting again in {verdict.pause:.0f} s")
            self._sleep(verdict.pause)
            if self.asked:
                return say(STOPPED, f"not started again ({self.asked}): {verdict.why}")

    def attempt(self) -> Verdict:
        """One start, and what it means."""
        status = self.start()
        outcome = read_outcome(self.told)
        stopped = outcome is not None and (Path(outcome.folder) / STOP).exists()
        self.ends.append(replace(end_of(outcome, status), asked=CANCELLED if stopped else self.asked))
        return judge(self.ends, self.limits)

    def start(self) -> int:
        """One start, and the end of all of its processes here. Returns the command's status."""
        self.told.unlink(missing_ok=True)
        process = subprocess.Popen(self.command, env={**os.environ, TOLD: str(self.told)}, start_new_session=True)
        status = process.wait()
        self._end_orphans()
        return status

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        """To the ranks, where they are known from their heartbeats: launchers that get a signal kill them, or leave them alone."""
        self.asked = signal.Signals(number).name
        children = {child.pid: child for child in psutil.Process().children(recursive=True)}
        outcome = read_outcome(self.told)
        ranks = [] if outcome is None else [beat["pid"] for beat in heartbeats(outcome)]
        known = [children[pid] for pid in ranks if pid in children]
        if known or not self.reach_elsewhere():
            for process in known or children.values():
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(signal.SIGTERM)

    def reach_elsewhere(self) -> bool:
        """Ask ranks that no signal of this process reaches to stop; False where there is no way."""
        return False

    def _end_orphans(self) -> None:
        """Wait for ranks that lost their launcher: they notice it, save and end. Kill what is still there after the grace."""
        left = psutil.Process().children(recursive=True)
        _, left = psutil.wait_procs(left, self.limits.grace)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, 10)

    def _sleep(self, seconds: float) -> None:
        """Ends early on a signal."""
        end = time.monotonic() + seconds
        while not self.asked and time.monotonic() < end:
            time.sleep(min(0.2, seconds))


def say(status: int, sentence: str) -> int:
    print(f"supervise: {sentence}", file=sys.stderr, flush=True)
    return status
