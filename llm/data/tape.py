"""A tape: the tokens of some shards laid end to end, and training rows of T tokens cut from it.

The token after a document is always the one that opens the next: so the label of a document's last token is the document token,
also where the tape ends. Where the documents lie comes from the index, never from looking for that token.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple, Self

import numpy as np

from llm.data.foreign import open_shard
from llm.data.manifest import Manifest, Shard
from llm.data.shard import OpenFiles

# of labels that no token is scored for, as torch's cross entropy takes it
NOT_SCORED = -100


class Rows(NamedTuple):
    """tokens, labels: int64 [n, T]; a label is the token that follows, or -100. starts: bool [n, T], where documents start."""

    tokens: np.ndarray
    labels: np.ndarray
    starts: np.ndarray

    @classmethod
    def padding(cls, n: int, sequence_length: int, document_token: int) -> Self:
        """Rows of nothing: document tokens that are not scored."""
        shape = (n, sequence_length)
        rows = cls(np.full(shape, document_token), np.full(shape, NOT_SCORED), np.zeros(shape, dtype=bool))
        rows.starts[:, :1] = True
        return rows


class Span(NamedTuple):
    """Tokens [low, high) of a tape."""

    low: int
    high: int


class Tape:
    """first: [shards + 1], where each shard begins on the tape, and the tape's end."""

    def __init__(self, manifest: Manifest, shards: Sequence[Shard], files: OpenFiles):
        self.readers = [open_shard(manifest, shard, files) for shard in shards]
        self.first = list(accumulate((shard.tokens for shard in shards), initial=0))
        self._document_token = manifest.tokenizer.document_token

    def __len__(self) -> int:
        """Tokens."""
        return self.first[-1]

    def lengths(self) -> np.ndarray:
        """int64 [documents]: tokens of each document, in order."""
        return np.concatenate([np.diff(reader.doc_ends, prepend=0) for reader in self.readers])

    def documents(self, span: Span) -> Iterator[tuple[str, range]]:
        """Shards, and the numbers of the documents in them, that a span has tokens of."""
        low, high = span
        k = bisect_right(self.first, low) - 1
        while low < high:
            reader, begin, end = self.readers[k], self.first[k], min(high, self.first[k + 1])
            first, last = reader.doc_ends.searchsorted((low - begin, end - begin - 1), side="right").tolist()
            yield reader.shard.path, range(first, last + 1)
            low, k = end, k + 1

    def fill(self, rows: Rows, n: int, spans: Sequence[Span], continues: bool = False) -> None:
        """Write spans of at most T tokens into row n of padding. continues: the first goes on with what the row's state holds."""
        at = 0
        for span in spans:
            at = self._fill(rows, n, at, span)
        if continues:
            rows.starts[n, 0] = False
        if 0 < at < rows.starts.shape[1]:
            # padding is a document of its own
            rows.starts[n, at] = True

    def _fill(self, rows: Rows, n: int, at: int, span: Span) -> int:
        low, high = span
        # what is before the span is not in the row
        rows.starts[n, at] = True
        k = bisect_right(self.first, low) - 1
        while low < high:
            reader, begin, end = self.readers[k], self.first[k], self.first[k + 1]
            a, b = low - begin, min(high, end) - begin
            ids = reader.tokens(a, min(b + 1, end - begin))
            here = slice(at, at + b - a)
            rows.tokens[n, here] = ids[: b - a]
            rows.labels[n, at : at + len(ids) - 1] = ids[1:]
            if len(ids) == b - a:
                rows.labels[n, here.stop - 1] = self._document_token
            first, last = reader.doc_ends.searchsorted((a, b))
            if first < last:
                rows.starts[n, reader.doc_ends[first:last] - a + at] = True
            if a == 0:
                rows.starts[n, at] = True
            low, at, k = begin + b, here.stop, k + 1
        return at
