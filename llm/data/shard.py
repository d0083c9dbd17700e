"""Reading a shard: a USTAR file that holds one blob of tokens and the index of its documents.

| member of the tar | content |
|---|---|
| `K.tokens.bin` | ids, uint16 if the vocabulary fits, else uint32, little endian; the document token opens every document |
| `K.doc_ends.idx` | uint64: where each document ends, in tokens |
| `K.text_ends.idx` | uint64: where each document's text ends, in UTF-8 bytes |
| `K.crc.bin` | uint32: crc32c of every 64 KiB block of `K.tokens.bin` |
| `K.json` | format version, dtype, tokenizer's sha256, counts |

K is the file's name without `.tar`. Tokens are read in place by pread: a tar need not be unpacked, a truncated file is an error
and not a signal (as with mmap), and threads and forked processes may share a descriptor. Indices are checked by pread as well, and
then mapped: so a dataset of any number of documents takes page cache, which the ranks of a node share, and no memory of its own.
"""

import os
import threading
from collections import OrderedDict
from functools import cached_property
from pathlib import Path

import google_crc32c
import numpy as np

from llm.data.manifest import REMEDY, Manifest, Shard
from llm.errors import DataError

BLOCK = 64 * 1024
# of an index, read at once to be checked
CHUNK = 1 << 20
TOKENS, DOC_ENDS, TEXT_ENDS, CRC, META = "tokens.bin", "doc_ends.idx", "text_ends.idx", "crc.bin", "json"


def token_dtype(vocabulary: int) -> np.dtype:
    """uint16 if ids fit, else uint32; little endian."""
    return np.dtype("<u2" if vocabulary <= 1 << 16 else "<u4")


class OpenFiles:
    """At most `limit` open files; the least recently used is closed first. Safe between threads."""

    def __init__(self, limit: int = 256):
        self._limit = limit
        self._open: OrderedDict[Path, int] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: Path, size: int, offset: int) -> bytes:
        """Exactly `size` bytes from `offset`. Raises DataError when they are not there."""
        try:
            with self._lock:
                data = os.pread(self._descriptor(path), size, offset)
        except OSError as error:
            raise DataError(f"shard {path} cannot be read ({error.strerror}); {REMEDY}") from None
        if len(data) != size:
            raise DataError(f"shard {path} ends within byte {offset + len(data)}: it is truncated; {REMEDY}")
        return data

    def map(self, path: Path, size: int, offset: int) -> np.ndarray:
        """uint8 [size] of the file, from `offset`; its pages are the system's."""
        try:
            return np.memmap(path, mode="r", offset=offset, shape=(size,)).view(np.ndarray)
        except (OSError, ValueError) as error:
            raise DataError(f"shard {path} cannot be mapped ({error}); {REMEDY}") from None

    def _descriptor(self, path: Path) -> int:
        if path not in self._open:
            if len(self._open) >= self._limit:
                os.close(self._open.popitem(last=False)[1])
            self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._open.move_to_end(path)
        return self._open[path]

    def close(self) -> None:
        with self._lock:
            while self._open:
                os.close(self._open.popitem()[1])

    def __del__(self) -> None:
        self.close()


class ShardReader:
    """Tokens and documents of one shard. Every block of tokens is checked against its crc32c the first time it is touched."""

    def __init__(self, manifest: Manifest, shard: Shard, files: OpenFiles):
        self.shard = shard
        self.path = manifest.root / shard.path
        self._dtype = token_dtype(manifest.tokenizer.vocabulary)
        self._files = files

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Ids [start, stop) of the blob, in the stored dtype. Raises DataError naming shard, block and documents."""
        member, width = self.shard.members[TOKENS], self._dtype.itemsize
        low, high = start * width, stop * width
        assert 0 <= low <= high <= member.bytes, f"tokens [{start}, {stop}) of {self.shard.tokens}"
        first, last = low // BLOCK, -(-high // BLOCK)
        if self._checked[first:last].all():
            return np.frombuffer(self._files.read(self.path, high - low, member.offset + low), self._dtype)
        aligned = first * BLOCK
        data = self._files.read(self.path, min(last * BLOCK, member.bytes) - aligned, member.offset + aligned)
        self._check_blocks(data, first)
        return np.frombuffer(data, self._dtype, stop - start, low - aligned)

    @cached_property
    def doc_ends(self) -> np.ndarray:
        """int64 [documents]: where each document ends, in tokens."""
        return self._index(DOC_ENDS)

    @property
    def doc_starts(self) -> np.ndarray:
        """int64 [documents]: where each document starts, in tokens."""
        return np.concatenate([[0], self.doc_ends[:-1]])

    @property
    def text_bytes(self) -> np.ndarray:
        """int64 [documents]: UTF-8 bytes of each document's text."""
        return np.diff(self._index(TEXT_ENDS), prepend=0)

    @cached_property
    def _checked(self) -> np.ndarray:
        return np.zeros(-(-self.shard.members[TOKENS].bytes // BLOCK), dtype=bool)

    @cached_property
    def _crc(self) -> np.ndarray:
        return self._member(CRC).view("<u4")

    def _index(self, name: str) -> np.ndarray:
        # as signed numbers: numpy compares unsigned and signed ones as floats, from a copy of them all
        return self._member(name).view("<i8")

    def _member(self, name: str) -> np.ndarray:
        member, crc = self.shard.members[name], 0
        for low in range(0, member.bytes, CHUNK):
            crc = google_crc32c.extend(crc, self._files.read(self.path, min(CHUNK, member.bytes - low), member.offset + low))
        if crc != member.crc32c:
            raise DataError(f"shard {self.path}: member {name} is corrupt (crc32c differs); {REMEDY}")
        return self._files.map(self.path, member.bytes, member.offset)

    def _check_blocks(self, data: bytes, first: int) -> None:
        for k, low in enumerate(range(0, len(data), BLOCK), start=first):
            if not self._checked[k]:
                if google_crc32c.value(data[low : low + BLOCK]) != self._crc[k]:
                    raise DataError(f"shard {self.path}: block {k} of the tokens{self._documents_of(k)} is corrupt; {REMEDY}")
                self._checked[k] = True

    def _documents_of(self, block: int) -> str:
        """The documents in a block, for people; nothing where the index is damaged as well."""
        tokens = BLOCK // self._dtype.itemsize
        inside = [block * tokens, min((block + 1) * tokens, self.shard.tokens) - 1]
        try:
            first, last = np.searchsorted(self.doc_ends, inside, side="right")
        except DataError:
            return ""
        return f" (document {first})" if first == last else f" (documents {first} to {last})"
