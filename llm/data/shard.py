"""Reading a shard: a USTAR file that holds one blob of tokens and the index of its documents.

| member of the tar | content |
|---|---|
| `K.tokens.bin` | ids, uint16 if the vocabulary fits, else uint32, little endian; the document token opens every document |
| `K.doc_ends.idx` | uint64: where each document ends, in tokens |
| `K.text_ends.idx` | uint64: where each document's text ends, in UTF-8 bytes |
| `K.crc.bin` | uint32: crc32c of every 64 KiB block of `K.tokens.bin` |
| `K.json` | format version, dtype, tokenizer's sha256, counts |

K is the file's name without `.tar`. Tokens are read in place by pread: a tar need not be unpacked, a truncated file is an error
and not a signal (as with mmap), and threads and forked processes may share a descriptor. The index of a touched shard stays in
memory, 8 bytes a document; canonical lanes (lanes.py) keep what a rank touches to its share.
"""

import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path

import google_crc32c
import numpy as np

from llm.data.manifest import REMEDY, Manifest, Shard
from llm.errors import DataError

BLOCK = 64 * 1024
# seconds between two looks for files that a cache has removed
SWEEP = 1.0
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
        self._next_sweep = 0.0

    def read(self, path: Path, size: int, offset: int, opened: Callable[[], int]) -> bytes:
        """Exactly `size` bytes from `offset`. opened: gives a descriptor of the file. Raises DataError when they are not there."""
        try:
            while True:
                with self._lock:
                    descriptor = self._open.get(path)
                    if descriptor is not None:
                        self._open.move_to_end(path)
                        data = os.pread(descriptor, size, offset)
                        break
                # outside of the lock: a shard that lies elsewhere is downloaded first
                self._add(path, opened())
        except OSError as error:
            raise DataError(f"shard {path} cannot be read ({error.strerror}); {REMEDY}") from None
        if len(data) != size:
            raise DataError(f"shard {path} ends within byte {offset + len(data)}: it is truncated; {REMEDY}")
        return data

    def discard(self, path: Path) -> bool:
        """Close a damaged file and remove it, unless another has taken its place already. False when it is not open."""
        with self._lock:
            descriptor = self._open.pop(path, None)
            if descriptor is None:
                return False
            with suppress(OSError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    path.unlink()
            os.close(descriptor)
            return True

    def close_removed(self) -> None:
        """Close what a cache has removed for others, which frees its disk; at most every SWEEP seconds."""
        with self._lock:
            if time.monotonic() < self._next_sweep:
                return
            self._next_sweep = time.monotonic() + SWEEP
            for path in [path for path, descriptor in self._open.items() if not os.fstat(descriptor).st_nlink]:
                os.close(self._open.pop(path))

    def _add(self, path: Path, descriptor: int) -> None:
        with self._lock:
            if path in self._open:
                # by another thread, meanwhile
                os.close(descriptor)
                return
            if len(self._open) >= self._limit:
                os.close(self._open.popitem(last=False)[1])
            self._open[path] = descriptor

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
        self._manifest = manifest

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Ids [start, stop) of the blob, in the stored dtype. Raises DataError naming shard, block and documents."""
        member, width = self.shard.members[TOKENS], self._dtype.itemsize
        low, high = start * width, stop * width
        assert 0 <= low <= high <= member.bytes, f"tokens [{start}, {stop}) of {self.shard.tokens}"
        first, last = low // BLOCK, -(-high // BLOCK)
        if self._checked[first:last].all():
            return np.frombuffer(self._read(high - low, member.offset + low), self._dtype)
        aligned = first * BLOCK
        # the index of checks is read before what it is for: each may find the copy damaged, and renew it
        check = partial(self._check_blocks, first, self._crc)
        data = self._read(min(last * BLOCK, member.bytes) - aligned, member.offset + aligned, check)
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
        return np.frombuffer(self._member(CRC), "<u4")

    def _index(self, name: str) -> np.ndarray:
        # as signed numbers: numpy compares unsigned and signed ones as floats, from a copy of them all
        return np.frombuffer(self._member(name), "<i8")

    def _member(self, name: str) -> bytes:
        member = self.shard.members[name]

        def check(data: bytes) -> None:
            if google_crc32c.value(data) != member.crc32c:
                raise DataError(f"shard {self.path}: member {name} is corrupt (crc32c differs); {REMEDY}")

        return self._read(member.bytes, member.offset, check)

    def _read(self, size: int, offset: int, check: Callable[[bytes], None] | None = None) -> bytes:
        """Bytes of the file that pass `check`. A copy in the cache that is found damaged is downloaded again, once."""
        try:
            return self._read_once(size, offset, check)
        except DataError as error:
            if self._manifest.remote is None or not self._files.discard(self.path):
                raise
            url = self._manifest.remote.url
            print(f"{error}: this copy of {url} is deleted and downloaded again", file=sys.stderr, flush=True)
        return self._read_once(size, offset, check)

    def _open(self) -> int:
        if self._manifest.remote is not None:
            self._files.close_removed()
        return self._manifest.open(self.shard)

    def _read_once(self, size: int, offset: int, check: Callable[[bytes], None] | None) -> bytes:
        data = self._files.read(self.path, size, offset, self._open)
        if check is not None:
            check(data)
        return data

    def _check_blocks(self, first: int, crc: np.ndarray, data: bytes) -> None:
        for k, low in enumerate(range(0, len(data), BLOCK), start=first):
            if not self._checked[k]:
                if google_crc32c.value(data[low : low + BLOCK]) != crc[k]:
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
