"""Whether a run starts again, judged by how its starts ended."""

import json
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from llm.train.exits import BAD_STEPS, DONE, MEND, STOPPED, UNFIT, Outcome
from llm.train.owner import HEARTBEAT

# that end processes
FATAL = (signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS)
LONGEST_PAUSE = 300.0
# whoever watched the run was told to end it, not to move it
CANCELLED = "cancelled"


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
    checkpoint. sentence: the run's own, or what is known. asked: the signal that stopped it, CANCELLED, or None.
    """

    status: int
    at: int | None
    saved: int | None
    sentence: str
    out_of_time: bool = False
    asked: str | None = None

    @property
    def failed(self) -> bool:
        """By itself: neither was it to move or to end, nor was a node the reason."""
        return self.status != UNFIT and not (self.status == STOPPED and (self.asked or self.out_of_time))


class Word(StrEnum):
    """DONE: the last step is reached. AGAIN: here and now. LATER: where there is time again, or other nodes. STOP: not at all."""

    DONE = "done"
    AGAIN = "again"
    LATER = "later"
    STOP = "stop"


@dataclass(frozen=True)
class Verdict:
    """status: what the run's ends with, if this is its end. pause: seconds before the next start."""

    word: Word
    why: str
    status: int
    pause: float = 0.0


def judge(ends: Sequence[End], limits: Limits) -> Verdict:
    """Of a run whose starts ended so, in their order."""
    end = ends[-1]
    if end.status == DONE:
        return Verdict(Word.DONE, end.sentence, DONE)
    if end.status in (MEND, BAD_STEPS):
        return Verdict(Word.STOP, f"not started again, as the next start would end alike: {end.sentence}", end.status)
    if end.asked == CANCELLED:
        return Verdict(Word.STOP, f"not started again (cancelled): {end.sentence}", STOPPED)
    failures = since_last_checkpoint(ends)
    why = hopeless(failures, limits)
    if why:
        return Verdict(Word.STOP, f"given up: {why}; the last: {end.sentence}", end.status)
    if end.asked or (end.status == STOPPED and end.out_of_time):
        return Verdict(Word.LATER, f"not started again ({end.asked or 'out of time'}): {end.sentence}", STOPPED)
    if end.status == UNFIT:
        return Verdict(Word.LATER, end.sentence, UNFIT)
    pause = 0.0 if end.status == STOPPED else min(LONGEST_PAUSE, limits.pause * 2 ** (len(failures) - 1))
    return Verdict(Word.AGAIN, end.sentence, end.status, pause)


def since_last_checkpoint(ends: Sequence[End]) -> list[End]:
    """The failures among the starts at the end of the list that found and left the same checkpoint as the newest."""
    same: list[End] = []
    for end in ends:
        if same and end.saved != same[-1].saved:
            same.clear()
        same.append(end)
    return [end for end in same if end.failed]


def hopeless(failures: list[End], limits: Limits) -> str | None:
    """Why another start has no point. failures: since the last new checkpoint."""
    same = failures[-limits.same_step :]
    if len(same) == limits.same_step and len({end.at for end in same}) == 1 and STOPPED not in {end.status for end in same}:
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
    if not outcome.trained and outcome.status is not None:
        return End(outcome.status, None, None, outcome.sentence)
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
    """Of the ranks of this start, which removed those of the start before when it took the run folder."""
    beats = []
    for path in sorted((Path(outcome.folder) / HEARTBEAT).glob("rank-*.json")):
        with suppress(OSError, json.JSONDecodeError):
            beats.append(json.loads(path.read_text()) | {"written": path.stat().st_mtime})
    return beats


def newest_step(folder: Path) -> int | None:
    """By the checkpoints' names: a kill may come before `latest` is written."""
    found = [path.name.removeprefix("step-") for path in (folder / "checkpoints").glob("step-*")]
    return max((int(step) for step in found if step.isdigit()), default=None)
