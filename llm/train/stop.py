"""Stopping on request: a signal sets a flag, the flag is agreed among the ranks at a step's border, a checkpoint follows."""

import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """True once SIGTERM or SIGUSR1 has arrived. Use it as a context: the former handlers come back at its end."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> "StopRequest":
        self._former = {number: signal.signal(number, self._arrived) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _arrived(self, number: int, _: FrameType | None) -> None:
        self.signal = number
