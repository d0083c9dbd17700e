"""Work in other processes: results in the order of the items, a bounded number of items under way."""

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing import get_context, parent_process
from typing import Self, TypeVar

from llm.errors import DataError

Item = TypeVar("Item")
Result = TypeVar("Result")
# (results that come, how many) -> the same results, with progress shown
Track = Callable[[Iterable[Result], int], Iterable[Result]]


class Workers:
    """`processes` processes, started when there is work for more than one. Use in a `with` block."""

    def __init__(self, processes: int):
        self.processes = processes
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def in_order(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """`map(function, items)`, with at most 2 * processes + 1 items and results in memory; in this process where there is only
        one of either.

        Raises:
            DataError: the system ended a worker, as it does when memory runs out.
        """
        items = iter(items)
        first = list(islice(items, 2))
        if self.processes == 1 or len(first) < 2:
            yield from map(function, chain(first, items))
            return
        pool, waiting = self._started(), deque()
        try:
            for item in chain(first, items):
                waiting.append(pool.submit(function, item))
                if len(waiting) > 2 * self.processes:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            law = "lost a process, as happens when memory runs out"
            raise DataError(f"workers ({self.processes}) {law}; run the same command again to go on, perhaps with fewer") from None

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            # spawn: a fork would copy locks that other threads of this process hold
            self._pool = ProcessPoolExecutor(self.processes, get_context("spawn"), initializer=_start)
        return self._pool


def _start() -> None:
    # the processes share the cores already, so libraries' threads would only be in the way
    os.environ["RAYON_NUM_THREADS"] = "1"
    # Ctrl-C ends a worker without a traceback of its own
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A process of an executor outlives a parent that was killed, and would wait for work for ever."""
    parent_process().join()
    os._exit(1)
