"""Runs a training command again and again until it is done, or until there is no point."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from llm.train.exits import BAD_STEPS, DONE, MEND, STOPPED, TOLD, Outcome, read_outcome

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
# that end processes
FATAL = (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)
LONGEST_PAUSE = 300.0
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Limits:
    """restarts: in a row without a new checkpoint. same_step: failures in a row at one step. pause: seconds before the first
    restart. grace: seconds that ranks have to save and end when their launcher is gone.
    """

    restarts: int = 10
    same_step: int = 3
    pause: float = 5.0
    grace: float = 120.0


@dataclass(frozen=True)
class End:
    """status: of the run, or the command's own. at: the step under way, None before the first. saved: step of the newest
    checkpoint. sentence: the run's own, or what is known.
    """

    status: int
    at: int | None
    saved: int | None
    sentence: str
    out_of_time: bool = False


class Supervisor:
    """Of one command. Its processes become this one's children when their parents die, so that none outlives a restart."""

    def __init__(self, command: list[str], limits: Limits):
        self.command, self.limits = command, limits
        self.asked: str | None = None
        self._place = tempfile.TemporaryDirectory(prefix="braid-supervise-")
        self.told = Path(self._place.name) / "outcome.json"
        # Linux alone; elsewhere orphans end themselves
        with suppress(AttributeError, OSError):
            ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def run(self) -> int:
        """Until it is done, stopped or given up. Returns the exit status."""
        for number in SIGNALS:
            signal.signal(number, self._pass_on)
        failures: list[End] = []
        while True:
            end = self.start()
            if end.status == DONE:
                return DONE
            if end.status in (MEND, BAD_STEPS):
                return say(end.status, f"not started again, as the next start would end alike: {end.sentence}")
            if self.asked or (end.status == STOPPED and end.out_of_time):
                return say(STOPPED, f"not started again ({self.asked or 'out of time'}): {end.sentence}")
            if failures and end.saved != failures[-1].saved:
                failures.clear()
            failures.append(end)
            why = hopeless(failures, self.limits)
            if why:
                return say(end.status, f"given up: {why}; the last: {end.sentence}")
            pause = 0.0 if end.status == STOPPED else min(LONGEST_PAUSE, self.limits.pause * 2 ** (len(failures) - 1))
            say(end.status, f"{end.sentence}; starting again in {pause:.0f} s")
            self._sleep(pause)
            if self.asked:
                return say(STOPPED, f"not started again ({self.asked}): {end.sentence}")

    def start(self) -> End:
        """One start, and the end of all of its processes."""
        self.told.unlink(missing_ok=True)
        process = subprocess.Popen(self.command, env={**os.environ, TOLD: str(self.told)}, start_new_session=True)
        status = process.wait()
        self._end_orphans()
        return end_of(read_outcome(self.told), status)

    def _pass_on(self, number: int, _: FrameType | None) -> None:
        """To the ranks, where they are known from their heartbeats: launchers that get a signal kill them, or leave them alone."""
        self.asked = signal.Signals(number).name
        children = {child.pid: child for child in psutil.Process().children(recursive=True)}
        outcome = read_outcome(self.told)
        ranks = [] if outcome is None else [beat["pid"] for beat in heartbeats(outcome)]
        known = [children[pid] for pid in ranks if pid in children]
        for process in known or children.values():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)

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


def hopeless(failures: list[End], limits: Limits) -> str | None:
    """Why another start has no point. failures: since the last new checkpoint."""
    same = failures[-limits.same_step :]
    if len(same) == limits.same_step and len({end.at for end in same}) == 1 and same[0].status != STOPPED:
        where = "before the first step" if same[0].at is None else f"at step {same[0].at}"
        return f"{limits.same_step} starts in a row failed {where}"
    if len(failures) > limits.restarts:
        return f"{len(failures)} starts in a row ended without a new checkpoint"
    return None


def end_of(outcome: Outcome | None, status: int) -> End:
    """How a start ended. outcome: what the run told; status: the command's, which launchers change."""
    # a launcher that was killed may well say 0; a signal is a negative number here, and 128 more in shells
    own = (128 - status if status < 0 else status) or 1
    if outcome is None:
        return End(own, None, None, f"the command ended with status {status} before it trained")
    saved = newest_step(Path(outcome.folder))
    steps = [beat["step"] for beat in heartbeats(outcome)]
    at = max(steps, default=0) or None
    if outcome.status is not None:
        return End(outcome.status, at, saved, outcome.sentence, outcome.out_of_time)
    where = "before the first step" if at is None else f"at or soon after step {at}"
    checkpoint = "no checkpoint yet" if saved is None else f"checkpoint step-{saved} is the newest"
    return End(own, at, saved, f"{outcome.folder} crashed ({described(status)}) {where}; {checkpoint}")


def described(status: int) -> str:
    """A command's status and the signal in it: negative here, 128 more in shells, out of 256 where DeepSpeed passes it on."""
    number = next((number for number in FATAL if status in (-number, 128 + number, 256 - number)), None)
    if number is None:
        return f"status {status}"
    return f"status {status}, {number.name}{', maybe out of memory' if number == signal.SIGKILL else ''}"


def heartbeats(outcome: Outcome) -> list[dict]:
    """Of the ranks of this start."""
    beats = []
    for path in sorted((Path(outcome.folder) / "heartbeat").glob("rank-*.json")):
        with suppress(OSError, json.JSONDecodeError):
            beats.append(json.loads(path.read_text()) | {"written": path.stat().st_mtime})
    return [beat for beat in beats if beat["written"] >= outcome.time - 60]


def newest_step(folder: Path) -> int | None:
    """By the checkpoints' names: a kill may come before `latest` is written."""
    found = [path.name.removeprefix("step-") for path in (folder / "checkpoints").glob("step-*")]
    return max((int(step) for step in found if step.isdigit()), default=None)


def say(status: int, sentence: str) -> int:
    print(f"supervise: {sentence}", file=sys.stderr, flush=True)
    return status
