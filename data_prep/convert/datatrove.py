"""datatrove's token files (`pipeline/tokens/tokenizer.py`): `X.ds`, ids one after another, uint16 or uint32 little endian;
`X.ds.index`, uint64, where each document ends; `X.ds.metadata`, text, the number of ids in its second line.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.convert.files import beside, file_size, mapped
from llm.errors import DataError

DTYPES = {2: "<u2", 4: "<u4"}


@dataclass(frozen=True)
class Datatrove:
    """files: .ds, with .ds.index beside them."""

    files: tuple[Path, ...]

    def documents(self) -> Iterator[tuple[str, np.ndarray]]:
        """(place, ids) of each document. Raises DataError."""
        for path in self.files:
            ends = mapped(beside(path, ".index"), "<u8").astype(np.int64)
            tokens = _tokens(path, int(ends[-1]) if len(ends) else 0)
            starts = np.concatenate([[0], ends[:-1]])
            if (ends < starts).any():
                raise DataError(f"{path}.index contradicts itself: ends of documents must not go back; make it again")
            for k, (low, high) in enumerate(zip(starts.tolist(), ends.tolist(), strict=False)):
                yield f"{path}, document {k}", tokens[low:high]


def _tokens(path: Path, count: int) -> np.ndarray:
    if beside(path, ".loss").exists():
        raise DataError(f"{path}.loss masks some ids out of the loss, which shards cannot; remove it to train on all of them")
    size = file_size(path)
    # which of both types follows from the sizes alone, while the tokenizer's name in the metadata may be missing
    dtype = DTYPES.get(size // count) if count and size % count == 0 else None
    if dtype is None and (size or count):
        raise DataError(f"{path} has {size} bytes where its index says {count} ids of 2 or 4 bytes; copy both again")
    metadata = beside(path, ".metadata")
    if metadata.exists():
        told = metadata.read_text(errors="replace").splitlines()[1:2]
        if told != [str(count)]:
            raise DataError(f"{metadata} says {told[0] if told else 'nothing'} where the index says {count} ids; copy both again")
    return mapped(path, dtype or "<u2")
