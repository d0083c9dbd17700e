"""The work folder: what the stages leave for each other, each file whole or not there."""

import errno
import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import zstandard

from llm.errors import DataError
from llm.whole_file import write_bytes

WORK = ".work"
# of the files below; another one never goes on with what an earlier release left
FORMAT = 1


class Text(NamedTuple):
    """A document."""

    id: str
    text: str


class Work:
    """The paths in a work folder. A part is known by its number, in the order of reading."""

    def __init__(self, root: Path):
        self.root = root
        self.reading = root / "reading.json"
        self.duplicates = root / "duplicates.json"
        self.dropped = root / "dropped.npy"
        self.tokenizer = root / "tokenizer.json"

    def documents(self, part: int) -> Path:
        return self.root / "documents" / f"{part:06d}.jsonl.zst"

    def ledger(self, part: int) -> Path:
        return self.root / "documents" / f"{part:06d}.json"

    def tokens(self, part: int) -> Path:
        return self.root / "tokens" / f"{part:06d}.bin"

    def lengths(self, part: int) -> Path:
        return self.root / "tokens" / f"{part:06d}.npz"

    def shard(self, number: int) -> Path:
        return self.root / "shards" / f"{number:05d}.json"

    @property
    def sources(self) -> list[str]:
        """Of the parts, in their order, once all of them are there."""
        return load(self.reading)["parts"]


@contextmanager
def opened(out: Path, key: str) -> Iterator[Work]:
    """The work folder of `key` in `out`, emptied of the work of others, and to this process alone.

    Raises DataError when another process is at work in it.
    """
    top = out / WORK
    top.mkdir(parents=True, exist_ok=True)
    with (top / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # a file system without locks is no reason to refuse
            if error.errno == errno.EWOULDBLOCK:
                raise DataError(f"out ({out}) is being prepared by another process; wait for it, or end it") from None
        # of a process that was killed while it wrote
        for half in out.glob(".*.tmp"):
            half.unlink()
        for other in top.iterdir():
            if other.name not in ("lock", key):
                shutil.rmtree(other)
        for name in ("documents", "tokens", "shards"):
            (top / key / name).mkdir(parents=True, exist_ok=True)
        yield Work(top / key)


def remove(out: Path, made: bool = False) -> None:
    """The work folder, if there is one. made: and `out`, if nothing else is in it."""
    with suppress(FileNotFoundError):
        shutil.rmtree(out / WORK)
    if made:
        with suppress(OSError):
            out.rmdir()


def save(path: Path, value: Any) -> None:
    write_bytes(path, json.dumps(value).encode())


def load(path: Path) -> Any:
    """None: the file is not there."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        return None


def write_documents(path: Path, documents: list[Text]) -> None:
    """One JSON array [id, text] a line."""
    lines = b"".join(json.dumps(document, ensure_ascii=False).encode() + b"\n" for document in documents)
    write_bytes(path, zstandard.compress(lines))


def read_documents(path: Path) -> Iterator[Text]:
    with zstandard.open(path, "rt", encoding="utf-8", newline="\n") as lines:
        for line in lines:
            yield Text(*json.loads(line))
