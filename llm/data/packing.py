"""`bestfit`: which tokens a training sequence of T tokens holds, as a pure function of the documents' lengths.

Documents lie end to end on a tape (the blob of a shard). A sequence is a row of pieces; a piece is (offset, length) on the tape and
never crosses a document's boundary.

Best fit decreasing (Ding et al., "Fewer Truncations Improve Language Modeling", arXiv:2404.10830): a document of at least T tokens
gives its whole sequences and a remainder; then remainders and shorter documents, longest first, each go where they leave least
room, or open a new sequence. So no document of up to T tokens is ever cut. The choice depends on nothing but the lengths: ties go
to the document that comes first and to the sequence that was filled last. A sequence is opened only for what fits into no other, so
at most one is at most half full: M tokens take fewer than 2 M / T + 1 sequences, and about 1.0001 M / T on text.
"""

from bisect import bisect_left, insort
from typing import NamedTuple

import numpy as np

from llm.errors import ConfigError, DataError


class Pieces(NamedTuple):
    """Pieces of one tape, int64 arrays of equal length. offset: where on the tape. length: tokens, at least 1."""

    offset: np.ndarray
    length: np.ndarray


class Packing(NamedTuple):
    """Sequences of one tape. first: int64 [sequences + 1]; sequence i holds the pieces from first[i] to first[i + 1], in order."""

    first: np.ndarray
    pieces: Pieces

    def __len__(self) -> int:
        return len(self.first) - 1


def bestfit(lengths: np.ndarray, sequence_length: int) -> Packing:
    """The packing of documents of these lengths: first the whole sequences of long documents, then the packed ones.

    Within a packed sequence pieces keep the documents' order.

    Raises:
        DataError: an empty document. ConfigError: a sequence length below 1.
    """
    lengths = checked_lengths(lengths, sequence_length)
    starts = np.cumsum(lengths) - lengths
    chunks, rest = np.divmod(lengths, sequence_length)
    whole = int(chunks.sum())
    # 0, 1, ... within each document
    chunk = np.arange(whole) - np.repeat(np.cumsum(chunks) - chunks, chunks)
    bins, used = _best_fit_decreasing(rest, sequence_length)
    packed = np.flatnonzero(rest)
    packed = packed[np.argsort(bins[packed], kind="stable")]
    offsets = np.concatenate([np.repeat(starts, chunks) + chunk * sequence_length, (starts + chunks * sequence_length)[packed]])
    counts = np.concatenate([np.ones(whole, dtype=np.int64), np.bincount(bins[packed], minlength=used)])
    sizes = np.concatenate([np.full(whole, sequence_length), rest[packed]])
    return Packing(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), Pieces(offsets, sizes))


def _best_fit_decreasing(sizes: np.ndarray, room: int) -> tuple[np.ndarray, int]:
    """The bin of each size (-1 for size 0), and how many bins of `room` there are."""
    order = np.argsort(-sizes, kind="stable")
    order = order[: np.count_nonzero(sizes)]
    bins, used = np.full(len(sizes), -1, dtype=np.int64), 0
    # bins by the room that is left in them, and those rooms in ascending order
    bins_with: dict[int, list[int]] = {}
    rooms: list[int] = []
    chosen = []
    for size in sizes[order].tolist():
        k = bisect_left(rooms, size)
        if k < len(rooms):
            left = rooms[k]
            stack = bins_with[left]
            bin_ = stack.pop()
            if not stack:
                del rooms[k]
        else:
            bin_, left = used, room
            used += 1
        chosen.append(bin_)
        left -= size
        if left:
            stack = bins_with.setdefault(left, [])
            if not stack:
                insort(rooms, left)
            stack.append(bin_)
    bins[order] = chosen
    return bins, used


def checked_lengths(lengths: np.ndarray, sequence_length: int) -> np.ndarray:
    """`lengths` as int64. Raises DataError for an empty document, ConfigError for a sequence length below 1."""
    if not 1 <= sequence_length < 1 << 48:
        raise ConfigError(f"data.sequence_length ({sequence_length}) must be at least 1 and below 2^48; use 1024")
    lengths = np.asarray(lengths, dtype=np.int64)
    if len(lengths) and lengths.min() < 1:
        raise DataError(
            f"document {int(lengths.argmin())} has {int(lengths.min())} tokens where every document has one; index again"
        )
    return lengths
