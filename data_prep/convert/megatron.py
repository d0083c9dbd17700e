"""Megatron's `.bin` and `.idx` (`megatron/core/datasets/indexed_dataset.py`, MMapIndexedDataset).

`.idx`, little endian: the magic, uint64 version 1, uint8 type of the ids, uint64 sequences, uint64 entries of the document index;
int32 length and int64 byte offset in `.bin` of each sequence; int64 first sequence of each document, then the number of sequences.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.convert.files import beside, file_size, mapped
from llm.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
HEADER = 34
DTYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"}


@dataclass(frozen=True)
class Megatron:
    """files: .bin, .idx, or what both names have in common."""

    files: tuple[Path, ...]

    def documents(self) -> Iterator[tuple[str, np.ndarray]]:
        """(place, ids) of each document, its sequences put together. Raises DataError."""
        for file in self.files:
            prefix = file.with_suffix("") if file.suffix in (".bin", ".idx") else file
            index = _Index(beside(prefix, ".idx"))
            tokens_file = beside(prefix, ".bin")
            size = file_size(tokens_file)
            if size != index.bytes:
                raise DataError(f"{tokens_file} has {size} bytes where its .idx says {index.bytes}; copy both again")
            data = mapped(tokens_file, "u1")
            for k in range(len(index.documents) - 1):
                yield f"{tokens_file}, document {k}", index.read(data, k)


class _Index:
    def __init__(self, path: Path):
        header = mapped(path, "u1", 0, HEADER).tobytes()
        version, code = int.from_bytes(header[9:17], "little"), header[17]
        if header[:9] != MAGIC or version != 1 or code not in DTYPES:
            raise DataError(f"{path} is no index of ids that is known here (magic, version 1, whole numbers); name Megatron's .idx")
        sequences, entries = (int.from_bytes(header[low : low + 8], "little") for low in (18, 26))
        size = HEADER + 12 * sequences + 8 * entries
        if file_size(path) != size:
            raise DataError(
                f"{path} has {file_size(path)} bytes where {sequences} sequences and {entries} documents take {size}; copy it "
                "again, or leave out the modes of multimodal data"
            )
        self._dtype = np.dtype(DTYPES[code])
        self._lengths = mapped(path, "<i4", HEADER, sequences)
        self._offsets = mapped(path, "<i8", HEADER + 4 * sequences, sequences)
        self.documents = mapped(path, "<i8", HEADER + 12 * sequences, entries)
        self.bytes = int(self._lengths.sum(dtype=np.int64)) * self._dtype.itemsize
        if not self._is_whole():
            raise DataError(f"{path} contradicts itself: lengths, offsets and documents do not fit together; make it again")

    def read(self, data: np.ndarray, document: int) -> np.ndarray:
        low, high = self.documents[document : document + 2]
        # sequences of one document stand one after another in most files, but nothing asks for it
        parts = [
            np.frombuffer(data[start : start + length * self._dtype.itemsize], self._dtype)
            for start, length in zip(self._offsets[low:high].tolist(), self._lengths[low:high].tolist(), strict=True)
        ]
        return np.concatenate(parts) if parts else np.zeros(0, self._dtype)

    def _is_whole(self) -> bool:
        ends = self._offsets + self._lengths.astype(np.int64) * self._dtype.itemsize
        starts = self.documents
        return (
            bool((self._lengths >= 0).all() and (self._offsets >= 0).all() and (ends <= self.bytes).all())
            and len(starts) > 0
            and (starts[0], starts[-1]) == (0, len(self._lengths))
            and bool((np.diff(starts) >= 0).all())
        )
