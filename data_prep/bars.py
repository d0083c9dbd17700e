"""What is shown on stderr while data is prepared."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from data_prep.readers import Record
from data_prep.workers import Result, Track

# between two looks at the clock
RECORDS = 64


class _Said(ProgressColumn):
    """What the task says of itself, or how far it is."""

    def render(self, task: Task) -> Text:
        return Text(task.fields.get("said") or f"{task.completed:,.0f}/{task.total or 0:,.0f}")


def progress_bars() -> Progress:
    """Progress bars on stderr, with counts and time left."""
    columns = TextColumn("{task.description:<12}"), BarColumn(), _Said(), TimeElapsedColumn(), TimeRemainingColumn()
    return Progress(*columns, console=Console(stderr=True))


def tracker(bars: Progress, name: str) -> Track:
    """A bar for results, in parts or shards."""

    def track(results: Iterable[Result], total: int) -> Iterator[Result]:
        task = bars.add_task(name, total=total)
        for result in results:
            yield result
            bars.advance(task)

    return track


@contextmanager
def reading(bars: Progress) -> Iterator[Callable[[Record], None]]:
    """To be called with every record: shows how many there are, and how fast they come."""
    task, start = bars.add_task("documents", total=None), time.monotonic()
    records = characters = 0

    def count(record: Record) -> None:
        nonlocal records, characters
        records += 1
        characters += len(record.text)
        if records % RECORDS == 0:
            show()

    def show() -> None:
        rate = characters / 1e6 / max(1e-9, time.monotonic() - start)
        bars.update(task, said=f"{records:,}, {characters / 1e6:,.1f} Mchar, {rate:.1f}/s")

    yield count
    show()
    bars.update(task, total=max(1, records), completed=max(1, records))
