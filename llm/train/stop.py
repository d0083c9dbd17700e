"""Stopping in time: a signal, a file, a lost launcher or time that is over sets a flag on one rank; the all-reduce that every step
makes tells all ranks, and a checkpoint follows.
"""

import os
import signal
import time
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
# of a time budget, kept for a first save whose duration is not known yet: seconds at most, and part of the budget
UNKNOWN_SAVE, UNKNOWN_PART = 60.0, 0.1
# a job's end, in seconds since 1970, set by its script
DEADLINE = "BRAID_DEADLINE"
# a save is given so many times what the longest one took
SAVE_FACTOR = 1.5


class StopRequest:
    """True once this rank wants to stop. As a context it handles signals: each sets the flag and nothing more, so that a second one
    cannot break the save that the first asked for. The former handlers come back at the end.

    minutes: the time budget from `began` (time.monotonic), or None; the environment's BRAID_DEADLINE may end it earlier. reason:
    why, once it is true. out_of_time: it is the budget.
    """

    def __init__(self, minutes: float | None = None, began: float | None = None) -> None:
        self.began = time.monotonic() if began is None else began
        # what sets an end: seconds from `began` until then
        ends = {} if minutes is None else {f"train.max_minutes ({minutes:g})": 60 * minutes}
        if os.environ.get(DEADLINE):
            ends["the job's minutes"] = float(os.environ[DEADLINE]) - time.time() + time.monotonic() - self.began
        self.law = min(ends, key=ends.__getitem__, default="")
        self.budget = ends.get(self.law)
        self.reason: str | None = None
        self.out_of_time = False

    def __bool__(self) -> bool:
        return self.reason is not None

    def ask(self, reason: str) -> None:
        """From any thread. The first reason stays."""
        self.reason = self.reason or reason

    def check_time(self, step_seconds: float, save_seconds: float | None) -> None:
        """Ask to stop when the budget has no room for what comes before the next check, and a save.

        step_seconds: until the next check. save_seconds: of the longest save; None: there was none.
        """
        if self.budget is None or self:
            return
        unknown = min(UNKNOWN_SAVE, UNKNOWN_PART * self.budget)
        reserve = step_seconds + (unknown if save_seconds is None else SAVE_FACTOR * save_seconds)
        if time.monotonic() - self.began + reserve > self.budget:
            self.out_of_time = True
            self.ask(f"{self.law} are over but for {reserve:.0f} s to save in")

    def __enter__(self) -> "StopRequest":
        self._former = {number: signal.signal(number, self._arrived) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _arrived(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and not self:
            # not `print`, which the signal may have interrupted
            os.write(2, b"stopping after this step, with a checkpoint; Ctrl-\\ ends at once, without\n")
        self.ask(signal.Signals(number).name)
