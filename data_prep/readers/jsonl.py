"""Files of one JSON object a line, plain or compressed."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from data_prep.readers.record import (
    MALFORMED,
    MAX_BYTES,
    TOO_LARGE,
    UNDECODABLE,
    ReadLog,
    Record,
    check_given,
    check_positive,
)
from data_prep.readers.streams import BrokenStream, read_lines
from data_prep.readers.walk import File, find_files

PATTERNS = [f"*.{name}{suffix}" for name in ("jsonl", "ndjson") for suffix in ("", ".gz", ".zst")]


@dataclass(frozen=True)
class JsonLines:
    """root: a folder or a file. files: patterns, as in a .gitignore; names ending in .gz and .zst are decompressed.

    text: the field that holds it. metadata: fields to keep beside it. max_bytes: of a line; longer ones are dropped.
    A record's position is its line, from 1. Blank lines are no records.
    """

    root: str = ""
    files: list[str] = field(default_factory=lambda: list(PATTERNS))
    text: str = "text"
    metadata: list[str] = field(default_factory=list)
    max_bytes: int = MAX_BYTES
    kind: str = "jsonl"

    def check(self, where: str = "jsonl") -> None:
        """Raises ConfigError."""
        check_given(self, where, "root", "files", "text")
        check_positive(self, where, "max_bytes")

    def inputs(self, log: ReadLog) -> Iterator[File]:
        """Raises DataError when there is no such file at all."""
        return find_files(self.root, self.files, log)

    def records(self, log: ReadLog) -> Iterator[Record]:
        """Raises DataError when there is no such file at all."""
        for file in self.inputs(log):
            yield from self._file(file, log)

    def _file(self, file: File, log: ReadLog) -> Iterator[Record]:
        number = 0
        with log.opening(file.name):
            try:
                for number, line in read_lines(file.path, self.max_bytes):
                    yield from self._line(f"{file.name}#{number}", line, log)
            except BrokenStream as broken:
                log.drop(broken.reason, f"{file.name}#{number + 1} and the rest")

    def _line(self, place: str, line: bytes | None, log: ReadLog) -> Iterator[Record]:
        if line is None:
            return log.drop(TOO_LARGE, place)
        if not line.strip():
            return None
        try:
            record = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError:
            return log.drop(UNDECODABLE, place)
        except (ValueError, RecursionError):
            return log.drop(MALFORMED, place)
        if not isinstance(record, dict):
            return log.drop(MALFORMED, place)
        yield from log.record(place, record.get(self.text), {name: record[name] for name in self.metadata if name in record})
