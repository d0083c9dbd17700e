"""Plain, gzip and zstd files: whole ones, and lines of bounded length up to the place where a file is damaged."""

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from data_prep.readers.record import DAMAGED, TRUNCATED

# compressed; what one of them expands to is in memory at once
CHUNK = 1 << 13
# windows up to 2 GiB, as `zstd --long=31` makes
WINDOW = 1 << 31


class BrokenStream(Exception):
    """The rest of the file is lost. reason: TRUNCATED or DAMAGED."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


def read_lines(path: Path, max_bytes: int) -> Iterator[tuple[int, bytes | None]]:
    """(line number from 1, line); None instead of a line that is longer than `max_bytes`.

    Raises:
        OSError: the file cannot be opened or read.
        BrokenStream: its compressed form ends too soon or is wrong; the whole lines before that have come.
    """
    with path.open("rb") as file, _decompressed(file, path.suffix) as stream:
        number = 0
        while line := _guarded(stream.readline, max_bytes + 1):
            number += 1
            too_long = len(line) > max_bytes
            yield number, None if too_long else line
            while too_long and line and not line.endswith(b"\n"):
                line = _guarded(stream.readline, max_bytes + 1)


def read_start(path: Path, size: int) -> bytes:
    """At most `size` bytes of the content. Raises OSError and BrokenStream, as `read_lines` does."""
    with path.open("rb") as file, _decompressed(file, path.suffix) as stream:
        return _guarded(stream.read, size)


def _guarded(read: Callable[[int], bytes], limit: int) -> bytes:
    try:
        return read(limit)
    except EOFError:
        raise BrokenStream(TRUNCATED) from None
    except (gzip.BadGzipFile, zlib.error):
        raise BrokenStream(DAMAGED) from None


def _decompressed(file: BinaryIO, suffix: str) -> BinaryIO:
    if suffix == ".gz":
        return gzip.GzipFile(fileobj=file)
    if suffix == ".zst":
        return io.BufferedReader(_Zstd(file), 1 << 17)
    return file


class _Zstd(io.RawIOBase):
    """Frames of zstd, one after the other. zstandard's own reader takes a frame that was cut short for the end of the file."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=WINDOW)
        # of the frame at hand; None between frames
        self._frame = None
        self._compressed, self._ready = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._ready:
            chunk = self._compressed or self._file.read(CHUNK)
            if not chunk:
                if self._frame:
                    raise BrokenStream(TRUNCATED)
                return 0
            self._ready = memoryview(self._decompress(chunk))
        n = min(len(buffer), len(self._ready))
        buffer[:n], self._ready = self._ready[:n], self._ready[n:]
        return n

    def _decompress(self, chunk: bytes) -> bytes:
        self._frame = self._frame or self._decompressor.decompressobj()
        try:
            out = self._frame.decompress(chunk)
        except zstandard.ZstdError:
            raise BrokenStream(DAMAGED) from None
        self._compressed = b""
        if self._frame.eof:
            self._compressed, self._frame = self._frame.unused_data, None
        return out
