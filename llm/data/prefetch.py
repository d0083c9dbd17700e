"""Reading ahead in a thread, so that the loop rarely waits for data."""

import queue
import threading
from collections.abc import Generator, Iterator
from typing import TypeVar

Item = TypeVar("Item")


class _End:
    """The last thing in the queue: why reading ended."""

    def __init__(self, error: BaseException | None):
        self.error = error


def prefetched(items: Iterator[Item], depth: int) -> Generator[Item, None, None]:
    """`items`, read ahead by at most `depth`, in the same order; an error is raised where its item was due.

    Closing or dropping the generator ends the thread.
    """
    if depth == 0:
        yield from items
        return
    ready: queue.Queue = queue.Queue(depth)
    stop = threading.Event()
    thread = threading.Thread(target=_fill, args=(items, ready, stop), name="data prefetch", daemon=True)
    thread.start()
    try:
        while not isinstance(item := ready.get(), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stop.set()
        thread.join()


def _fill(items: Iterator, ready: queue.Queue, stop: threading.Event) -> None:
    try:
        for item in items:
            if not _put(ready, item, stop):
                return
        end = _End(None)
    except BaseException as error:  # handed over to the reader
        end = _End(error)
    _put(ready, end, stop)


def _put(ready: queue.Queue, item: object, stop: threading.Event) -> bool:
    while not stop.is_set():
        try:
            ready.put(item, timeout=0.05)
            return True
        except queue.Full:
            continue
    return False
