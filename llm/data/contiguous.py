"""`contiguous` packing: lanes of whole documents, for layers whose state is carried from one sequence to the next.

Sequence i is step i // L of lane i % L, so a batch of L sequences holds the next T tokens of every lane, and row l of a batch goes
on where row l of the batch before ended. L is fixed for the run: another number of lanes is another order.

Cut: documents lie end to end on a tape of M tokens. Lanes are runs of documents, filled one after the other up to the smallest room
that L lanes can do with: at most M / L + (longest document) tokens, as a lane with that much room ends past M / L. So the longest
lane is as short as runs allow. Lanes stay the same in every epoch.

Order: in every epoch a lane's documents come in a new order: blocks of 4,096 documents are permuted, and the documents in
each. A document is never cut at a block's edge, and its pieces follow each other on its lane.

Aligned: all lanes begin an epoch at the same step, and no document goes over from one epoch into the next. An epoch takes
S = ceil(longest lane / T) steps; a lane is padded behind its last document, L S T - M tokens in all, less than
L (longest document + T) + L. Where a document is longer than M / L that is a lot: see `ContiguousLanes.padding`.

Memory: 8 bytes a document, and the blocks in use. A seek permutes the lane's blocks and one block; nothing is replayed.
"""

from bisect import bisect_left
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from llm.data.packing import Pieces, checked_lengths
from llm.data.permutation import epoch_keys, permute, source_key
from llm.errors import ConfigError

BLOCK = 4096


class Row(NamedTuple):
    """A sequence: pieces on the tape, at most T tokens together. continues: the first piece goes on with the lane's document."""

    epoch: int
    pieces: Pieces
    continues: bool


class _Run(NamedTuple):
    """Things in their order of this epoch. which: their numbers. ends: where each ends, in tokens from the beginning of the run."""

    which: np.ndarray
    ends: np.ndarray


class ContiguousLanes:
    """The endless order of rows over a tape of documents.

    Args:
        lengths: of the documents, in tokens. lanes: L. sequence_length: T. seed, source: of the order.

    Raises:
        DataError: an empty document. ConfigError: no or more lanes than documents, or a sequence length below 1.
    """

    def __init__(self, lengths: np.ndarray, lanes: int, sequence_length: int, seed: int, source: str = ""):
        lengths = checked_lengths(lengths, sequence_length)
        if not 1 <= lanes <= len(lengths):
            raise ConfigError(f"lanes ({lanes}) must be at least 1 and at most the documents ({len(lengths)}); use a smaller batch")
        self.lanes, self.sequence_length = lanes, sequence_length
        # where each document begins; one more, the end of the tape
        self._tape = np.concatenate([[0], np.cumsum(lengths)])
        self.first = _cut(self._tape, lanes)
        self.tokens = np.diff(self._tape[self.first])
        self.steps = -(-int(self.tokens.max()) // sequence_length)
        self.padding = lanes * self.steps * sequence_length - int(self._tape[-1])
        self._key = source_key(seed, source)
        # rows of neighbouring steps come from the same blocks
        self._blocks = lru_cache(lanes + 1)(self._permuted_blocks)
        self._documents = lru_cache(2 * lanes + 2)(self._permuted_documents)

    def __len__(self) -> int:
        """Rows of an epoch."""
        return self.lanes * self.steps

    def row(self, i: int) -> Row:
        """Row i, i >= 0 without bound."""
        step, lane = divmod(i, self.lanes)
        epoch, step = divmod(step, self.steps)
        low = step * self.sequence_length
        high = min(low + self.sequence_length, int(self.tokens[lane]))
        offsets, lengths, at = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int64)], low
        continues = False
        while at < high:
            pieces = self._within_block(lane, epoch, at, high)
            if at == low:
                continues = bool(pieces.offset[0] != self._tape[np.searchsorted(self._tape, pieces.offset[0])])
            offsets.append(pieces.offset)
            lengths.append(pieces.length)
            at += int(pieces.length.sum())
        return Row(epoch, Pieces(np.concatenate(offsets), np.concatenate(lengths)), continues)

    def _within_block(self, lane: int, epoch: int, low: int, high: int) -> Pieces:
        """The pieces of [low, high) of a lane's tokens, up to the end of the block that holds `low`."""
        blocks = self._blocks(lane, epoch)
        place = int(np.searchsorted(blocks.ends, low, side="right"))
        before = int(blocks.ends[place - 1]) if place else 0
        run = self._documents(lane, epoch, int(blocks.which[place]))
        low, high = low - before, min(high, int(blocks.ends[place])) - before
        a, b = np.searchsorted(run.ends, [low, high - 1], side="right")
        documents, ends = run.which[a : b + 1], run.ends[a : b + 1]
        begins = ends - (self._tape[documents + 1] - self._tape[documents])
        lows, highs = np.maximum(begins, low), np.minimum(ends, high)
        return Pieces(self._tape[documents] + lows - begins, highs - lows)

    def _permuted_blocks(self, lane: int, epoch: int) -> _Run:
        first, last = self.first[lane], self.first[lane + 1]
        edges = np.append(np.arange(first, last, BLOCK), last)
        which = _permuted(len(edges) - 1, self._epoch_key(lane, epoch))
        return _Run(which, np.cumsum(np.diff(self._tape[edges])[which]))

    def _permuted_documents(self, lane: int, epoch: int, block: int) -> _Run:
        first = int(self.first[lane]) + block * BLOCK
        last = min(first + BLOCK, int(self.first[lane + 1]))
        # blocks count from 1: 0 is the order of the blocks themselves
        which = first + _permuted(last - first, epoch_keys(self._epoch_key(lane, epoch), block + 1))
        return _Run(which, np.cumsum(self._tape[which + 1] - self._tape[which]))

    def _epoch_key(self, lane: int, epoch: int) -> np.ndarray:
        return epoch_keys(epoch_keys(self._key, epoch), lane)


def _cut(tape: np.ndarray, lanes: int) -> np.ndarray:
    """int64 [lanes + 1]: the first document of each lane, and their number. tape: where each document begins, and the last ends."""
    even, longest = -(-int(tape[-1]) // lanes), int(np.diff(tape).max())

    def filled(room: int) -> list[int]:
        first = [0]
        for _ in range(lanes):
            first.append(int(np.searchsorted(tape, tape[first[-1]] + room, side="right")) - 1)
        return first

    rooms = range(max(even, longest), even + longest + 1)
    enough = bisect_left(rooms, True, key=lambda room: filled(room)[-1] == len(tape) - 1)
    return np.array(filled(rooms[enough]))


def _permuted(size: int, key: np.ndarray) -> np.ndarray:
    return permute(np.arange(size), size, key)
