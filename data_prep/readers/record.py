"""Records, their ids, and what became of those that could not be read."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from data_prep.clean import Report
from llm.errors import ConfigError

# why a record, or a file of them, was not read; readers of one format add their own
UNREADABLE = "unreadable"
UNDECODABLE = "undecodable"
TRUNCATED = "truncated"
DAMAGED = "damaged"
MALFORMED = "malformed"
NO_TEXT = "no text"
NOT_STRING = "text is no string"
TOO_LARGE = "too large"

# of one record at most, so that a file without line ends cannot fill the memory
MAX_BYTES = 1 << 28


class Record(NamedTuple):
    """id: `source:file#position`, without `#position` where a file is one record. text: not cleaned yet, valid Unicode."""

    id: str
    text: str
    metadata: dict[str, Any]


class ReadLog:
    """Makes the records of one source and counts what is dropped: `read` is the sum of the records made and of every drop.

    Args:
        source: its name, which opens every id.
        report: gets the counts, and the first few places of each reason.
        on_drop: called with (reason, place) for every drop; to write all of them down.
    """

    def __init__(self, source: str, report: Report, on_drop: Callable[[str, str], None] | None = None):
        self.source, self.report, self.on_drop = source, report, on_drop

    def record(self, place: str, text: object, metadata: dict[str, Any] | None = None) -> Iterator[Record]:
        """The record at `place` (`file` or `file#position`), or none when its text is no text."""
        if text is None:
            return self.drop(NO_TEXT, place)
        if not isinstance(text, str):
            return self.drop(NOT_STRING, place)
        # JSON can spell half a surrogate pair, which no encoding can write
        if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
            return self.drop(UNDECODABLE, place)
        self.report.counts["read"] += 1
        yield Record(f"{self.source}:{place}", text, metadata or {})

    def drop(self, reason: str, place: str, records: int = 1) -> None:
        """records: how many are lost, where it is known; a file that cannot be opened counts as one."""
        self.report.counts["read"] += records
        # the report counts the first itself
        self.report.counts[reason] += records - 1
        self.report.drop(reason, place)
        if self.on_drop:
            self.on_drop(reason, place)

    @contextmanager
    def opening(self, place: str) -> Iterator[None]:
        """Counts a file that the system refuses to open or read."""
        try:
            yield
        except OSError as error:
            self.drop(f"{UNREADABLE} ({error.strerror or type(error).__name__})", place)


def printable(name: str) -> str:
    """A file's name as an id shows it: bytes that are no UTF-8 become `\\xNN`."""
    return os.fsencode(name).decode(errors="backslashreplace")


def check_positive(config: object, where: str, *names: str) -> None:
    """Raises ConfigError."""
    for name in names:
        if getattr(config, name) < 1:
            raise ConfigError(f"{where}.{name} ({getattr(config, name)}) must be at least 1")


def check_given(config: object, where: str, *names: str) -> None:
    """Raises ConfigError for a setting that is empty."""
    for name in names:
        if not getattr(config, name):
            raise ConfigError(f"{where}.{name} (none) must be given")
