"""Reading tokens from WebDataset tars of others, in place: one array per sample, found by an index made once.

The index is a tar like a shard, with the same members but for the tokens; where a shard holds `K.tokens.bin` and `K.crc.bin` it has
`K.arrays.idx`, of ARRAY: where each document's ids lie in the foreign tar, their type, and their crc32c. The document token stands
before every document, though not in the tar. The manifest tells the tar's path and size.
"""

import os
from functools import cached_property, partial
from pathlib import Path

import google_crc32c
import numpy as np

from llm.data.manifest import Manifest, Shard
from llm.data.shard import OpenFiles, ShardReader
from llm.errors import DataError

ARRAYS = "arrays.idx"
# dtype: its place in DTYPES
ARRAY = np.dtype([("offset", "<u8"), ("crc", "<u4"), ("dtype", "u1")])
DTYPES = ("|u1", "|i1", *(f"{order}{kind}{size}" for order in "<>" for kind in "ui" for size in (2, 4, 8)))
REMEDY = "copy the tar again, or index it again"


def open_shard(manifest: Manifest, shard: Shard, files: OpenFiles) -> ShardReader:
    """The reader that a shard's layout asks for."""
    return ShardReader(manifest, shard, files) if shard.foreign is None else ForeignReader(manifest, shard, files)


class ForeignReader(ShardReader):
    """Tokens and documents of a foreign tar. A document is checked against its crc32c the first time it is touched."""

    def __init__(self, manifest: Manifest, shard: Shard, files: OpenFiles):
        super().__init__(manifest, shard, files)
        assert shard.foreign is not None
        self.tar: Path = manifest.root / shard.foreign.path
        self._document_token = manifest.tokenizer.document_token
        self._whole = np.zeros(shard.documents, dtype=bool)

    def tokens(self, start: int, stop: int) -> np.ndarray:
        """Ids [start, stop), in the dtype of shards. Raises DataError naming the tar and the damaged document."""
        assert 0 <= start <= stop <= self.shard.tokens, f"tokens [{start}, {stop}) of {self.shard.tokens}"
        out = np.empty(stop - start, self._dtype)
        document = int(self.doc_ends.searchsorted(start, side="right"))
        begin = int(self.doc_ends[document - 1]) if document else 0
        while begin < stop:
            end = int(self.doc_ends[document])
            if begin >= start:
                out[begin - start] = self._document_token
            low, high = max(start, begin + 1), min(stop, end)
            if low < high:
                out[low - start : high - start] = self._ids(document, low - begin - 1, high - begin - 1, end - begin - 1)
            document, begin = document + 1, end
        return out

    @cached_property
    def _arrays(self) -> np.ndarray:
        return np.frombuffer(self._member(ARRAYS), ARRAY)

    def _ids(self, document: int, low: int, high: int, count: int) -> np.ndarray:
        """Ids [low, high) of the `count` of a document."""
        offset, crc, code = self._arrays[document].item()
        dtype = np.dtype(DTYPES[code])
        if self._whole[document]:
            return np.frombuffer(self._bytes((high - low) * dtype.itemsize, offset + low * dtype.itemsize), dtype)
        data = self._bytes(count * dtype.itemsize, offset)
        if google_crc32c.value(data) != crc:
            raise DataError(f"tar {self.tar}: document {document} of {self.path.name} (at byte {offset}) is corrupt; {REMEDY}")
        self._whole[document] = True
        return np.frombuffer(data, dtype)[low:high]

    def _bytes(self, size: int, offset: int) -> bytes:
        return self._files.read(self.tar, size, offset, partial(os.open, self.tar, os.O_RDONLY | os.O_CLOEXEC))
