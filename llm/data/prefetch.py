"""Reading ahead in threads, so that the loop rarely waits for data."""

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import count
from typing import TypeVar

Item = TypeVar("Item")


def read_ahead(read: Callable[[int], Item], workers: int, depth: int) -> Generator[Item, None, None]:
    """read(0), read(1), ... without end, read by `workers` threads at most `depth` calls ahead; by the caller where there are none.

    `read` depends on its argument alone, so the threads' order does not matter. An error is raised where its item was due. Closing
    or dropping the generator ends the threads.
    """
    if workers == 0:
        yield from map(read, count())
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="data prefetch") as pool:
        ahead: deque[Future[Item]] = deque()
        try:
            for k in count():
                ahead.append(pool.submit(read, k))
                if len(ahead) > depth:
                    yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()
