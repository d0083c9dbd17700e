"""Files that are one document each."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data_prep.readers.record import MAX_BYTES, TOO_LARGE, UNDECODABLE, ReadLog, Record, check_given, check_positive
from data_prep.readers.streams import BrokenStream, read_start
from data_prep.readers.walk import File, find_files


@dataclass(frozen=True)
class TextFiles:
    """UTF-8 text, with or without a byte order mark. root: a folder or a file. files: patterns, as in a .gitignore; names ending in
    .gz and .zst are decompressed.

    max_bytes: of a file; larger ones are dropped, for a document is held in memory.
    """

    root: str = ""
    files: list[str] = field(default_factory=lambda: ["*.txt", "*.md"])
    max_bytes: int = MAX_BYTES
    kind: str = "text"

    def check(self, where: str = "text") -> None:
        """Raises ConfigError."""
        check_given(self, where, "root", "files")
        check_positive(self, where, "max_bytes")

    def inputs(self, log: ReadLog) -> Iterator[File]:
        """Raises DataError when there is no such file at all."""
        return find_files(self.root, self.files, log)

    def records(self, log: ReadLog) -> Iterator[Record]:
        """Raises DataError when there is no such file at all."""
        for file in self.inputs(log):
            content = read_file(file, self.max_bytes, log, read_start)
            if content is not None:
                yield from decoded(file, content, log)


def read_bytes(path: Path, size: int) -> bytes:
    with path.open("rb") as stream:
        return stream.read(size)


def read_file(file: File, max_bytes: int, log: ReadLog, read: Callable[[Path, int], bytes] = read_bytes) -> bytes | None:
    """None: the file is too large, or cannot be read; both are counted."""
    with log.opening(file.name):
        try:
            content = read(file.path, max_bytes + 1)
        except BrokenStream as broken:
            return log.drop(broken.reason, file.name)
        if len(content) <= max_bytes:
            return content
        log.drop(TOO_LARGE, file.name)
    return None


def decoded(file: File, content: bytes, log: ReadLog, **metadata: str) -> Iterator[Record]:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return log.drop(UNDECODABLE, file.name)
    yield from log.record(file.name, text, metadata)
