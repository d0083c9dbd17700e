"""nanoGPT's `train.bin` and llm.c's shards: ids one after another, documents parted by a mark.

nanoGPT (`data/openwebtext/prepare.py`) writes bare uint16, the mark at the end of each document. llm.c (`dev/data/data_common.py`)
puts 256 int32 before them: 20240520, 1 and the number of ids (uint16), or 20240801, 7 and the number (uint32); the mark opens
documents.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_prep.convert.files import file_size, mapped
from llm.errors import DataError

HEADER = 256 * 4
# (magic, version) of a header -> the ids behind it
LLM_C = {(20240520, 1): "<u2", (20240801, 7): "<u4"}
# ids looked through at a time
STEP = 1 << 22


@dataclass(frozen=True)
class NanoGPT:
    """files: .bin. mark: the id that parts documents. dtype: of files without llm.c's header, uint16 or uint32."""

    files: tuple[Path, ...]
    mark: int
    dtype: str = "uint16"

    def documents(self) -> Iterator[tuple[str, np.ndarray]]:
        """(place, ids without the mark) of each document. Raises DataError.

        The files are one stream: llm.c's end in the midst of a document, which the next one goes on with. Whether marks open or end
        documents makes no difference to what lies between two of them.
        """
        rest, place = np.zeros(0, np.int64), f"{self.files[0]} at 0"
        marks = 0
        for path in self.files:
            tokens, start = self._tokens(path), 0
            for end in _positions(tokens, self.mark):
                ids = np.concatenate([rest, tokens[start:end]])
                # before the first mark there need be nothing
                if marks or len(ids):
                    yield place, ids
                marks += 1
                rest, place, start = rest[:0], f"{path} at {end + 1}", end + 1
            rest = np.concatenate([rest, tokens[start:]])
        if len(rest):
            yield place, rest

    def _tokens(self, path: Path) -> np.ndarray:
        if file_size(path) >= HEADER:
            magic, version, count = (int(number) for number in mapped(path, "<i4", 0, 3))
            if dtype := LLM_C.get((magic, version)):
                tokens = mapped(path, dtype, HEADER)
                if len(tokens) != count:
                    raise DataError(f"{path} has {len(tokens)} ids where its header says {count}; copy it again")
                return tokens
        return mapped(path, np.dtype(self.dtype).newbyteorder("<"))


def _positions(tokens: np.ndarray, mark: int) -> Iterator[int]:
    for low in range(0, len(tokens), STEP):
        yield from (low + np.flatnonzero(tokens[low : low + STEP] == mark)).tolist()
