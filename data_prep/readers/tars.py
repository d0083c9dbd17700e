"""WebDataset tars: members of one key, which stand together, are one sample.

As in webdataset 1.0.2 (`tariterators.py`) a member's key is its path up to the first dot of its file name, the rest its extension.
The text comes from one extension; .cls and .json are metadata.
"""

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from data_prep.readers.record import (
    DAMAGED,
    MALFORMED,
    MAX_BYTES,
    NO_TEXT,
    TOO_LARGE,
    TRUNCATED,
    UNDECODABLE,
    ReadLog,
    Record,
    check_given,
    check_positive,
)
from data_prep.readers.walk import File, find_files

MEMBER = re.compile(r"((?:.*/|)[^./][^./]*)\.([^/]+)", re.DOTALL)
Sample = dict[str, bytes | None]


@dataclass(frozen=True)
class Tars:
    """root: a folder or a file. files: patterns, as in a .gitignore. extension: of the member that holds the text.

    text: the field of the object, where `extension` is json. metadata: fields of the .json to keep; a .cls member is kept as the
    integer `cls`. max_bytes: of a member. A record's position is its key.
    """

    root: str = ""
    files: list[str] = field(default_factory=lambda: ["*.tar"])
    extension: str = "txt"
    text: str = "text"
    metadata: list[str] = field(default_factory=list)
    max_bytes: int = MAX_BYTES
    kind: str = "webdataset"

    def check(self, where: str = "webdataset") -> None:
        """Raises ConfigError."""
        check_given(self, where, "root", "files", "extension", "text")
        check_positive(self, where, "max_bytes")

    def inputs(self, log: ReadLog) -> Iterator[File]:
        """Raises DataError when there is no such file at all."""
        return find_files(self.root, self.files, log)

    def records(self, log: ReadLog) -> Iterator[Record]:
        """Raises DataError when there is no such file at all."""
        for file in self.inputs(log):
            with log.opening(file.name), file.path.open("rb") as stream:
                for key, sample in self._samples(file, stream, log):
                    yield from self._record(f"{file.name}#{key}", sample, log)

    def _samples(self, file: File, stream: BinaryIO, log: ReadLog) -> Iterator[tuple[str, Sample]]:
        """(key, content by extension; None: too large) of each sample."""
        wanted = {self.extension, "json", "cls"}
        key, sample = "", {}
        try:
            for name, member in members(stream):
                match = MEMBER.fullmatch(name)
                if match is None:
                    log.drop("member without a key", f"{file.name}#{name}")
                    continue
                if match[1] != key:
                    if sample:
                        yield key, sample
                    key, sample = match[1], {}
                # a key whose only members are of other kinds is a sample too
                sample.setdefault("", b"")
                if match[2] in wanted:
                    sample[match[2]] = None if member.size > self.max_bytes else content_of(stream, member)
        except Broken as broken:
            # the sample at hand may lack a member
            return log.drop(broken.reason, f"{file.name}#{key} and the rest")
        if sample:
            yield key, sample

    def _record(self, place: str, sample: Sample, log: ReadLog) -> Iterator[Record]:
        if None in sample.values():
            return log.drop(TOO_LARGE, place)
        if self.extension not in sample:
            return log.drop(NO_TEXT, place)
        try:
            text: object = sample[self.extension].decode("utf-8-sig")
            fields = json.loads(sample.get("json", b"{}").decode("utf-8-sig"))
            metadata: dict[str, Any] = {"cls": int(sample["cls"])} if "cls" in sample else {}
        except UnicodeDecodeError:
            return log.drop(UNDECODABLE, place)
        except (ValueError, RecursionError):
            return log.drop(MALFORMED, place)
        if not isinstance(fields, dict):
            return log.drop(MALFORMED, place)
        if self.extension == "json":
            text = fields.get(self.text)
        yield from log.record(place, text, metadata | {name: fields[name] for name in self.metadata if name in fields})


class Broken(Exception):
    """A tar that is cut short or damaged; reason: TRUNCATED or DAMAGED."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def members(stream: BinaryIO) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Regular files of the tar. Raises Broken where it is cut short or damaged."""
    try:
        with tarfile.open(fileobj=stream, mode="r:", errors="backslashreplace") as tar:
            while member := tar.next():
                # tarfile would remember them all
                tar.members.clear()
                if member.isreg():
                    yield member.name, member
            end = tar.offset
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise Broken(TRUNCATED if "unexpected end" in str(error) or "truncated" in str(error) else DAMAGED) from None
    # tarfile takes a header that is wrong for the end of the tar; the end is a block of zeros
    stream.seek(end)
    block = stream.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise Broken(TRUNCATED)
    if any(block):
        raise Broken(DAMAGED)


def content_of(stream: BinaryIO, member: tarfile.TarInfo) -> bytes:
    """A member's content. Raises Broken where the tar ends within it."""
    stream.seek(member.offset_data)
    content = stream.read(member.size)
    if len(content) < member.size:
        raise Broken(TRUNCATED)
    return content
