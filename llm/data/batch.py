"""Batches: what a data-parallel rank trains and validates on.

Step by step, the ranks together take the next `batch` rows of the global order. A rank takes its part of them sorted by canonical
lane, so that it, and its node, reads near the same places of the disk again and again. Parts may differ by a row; rows that are not
scored fill them up, so all ranks have as many micro-batches of one size. So the order of training depends on neither ranks,
micro-batch, reading threads nor restarts, and its whole state is `consumed`, beside the rows that are never read (`Quarantine`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from math import ceil

import numpy as np
import torch
from torch import Tensor

from llm.data.lanes import share_of_rank
from llm.data.manifest import Manifest
from llm.data.prefetch import read_ahead
from llm.data.quarantine import Quarantine
from llm.data.rows import Concat
from llm.data.shard import OpenFiles
from llm.data.stream import TokenStream
from llm.data.tape import NOT_SCORED, Rows, Tape
from llm.docs import Docs
from llm.errors import ConfigError


@dataclass(frozen=True)
class Batch:
    """tokens_BT: int64. labels_BT: int64, the next token; -100 is not scored. docs: where documents start."""

    tokens_BT: Tensor
    labels_BT: Tensor
    docs: Docs

    @classmethod
    def from_rows(cls, rows: Rows) -> "Batch":
        tokens, labels, starts = map(torch.from_numpy, rows)
        return cls(tokens, labels, Docs(starts))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        tokens, labels = (tensor.to(device, non_blocking=non_blocking) for tensor in (self.tokens_BT, self.labels_BT))
        return Batch(tokens, labels, self.docs.to(device, non_blocking))

    def split(self, size: int) -> list["Batch"]:
        """Micro-batches of `size` rows, the last one possibly smaller."""
        parts = (slice(first, first + size) for first in range(0, len(self.tokens_BT), size))
        return [Batch(self.tokens_BT[rows], self.labels_BT[rows], self.docs.rows(rows)) for rows in parts]

    def part(self, rank: int, ranks: int) -> "Batch":
        """The tokens of one rank out of those that share a sequence, in equal parts, with the documents of the whole sequence.

        Labels were shifted before.
        """
        assert self.tokens_BT.shape[1] % ranks == 0, f"{self.tokens_BT.shape[1]} tokens in {ranks} parts"
        tokens, labels = (x.chunk(ranks, 1)[rank] for x in (self.tokens_BT, self.labels_BT))
        return Batch(tokens, labels, self.docs)

    @cached_property
    def loss_mask_BT(self) -> Tensor:
        """bool: labels that are scored."""
        return self.labels_BT != NOT_SCORED

    @property
    def scored(self) -> Tensor:
        """int64 scalar: labels that are scored."""
        return self.loss_mask_BT.sum()


class Batches(Iterator[list[Batch]]):
    """One rank's micro-batches, step after step, without end.

    Args:
        batch: rows per step, all ranks together. micro_batch: rows per micro-batch. consumed: where in the stream the first step
            begins. part: this rank's place among those that share its sequences, and their number. quarantine: rows passed over.

    Raises:
        ConfigError: a batch of fewer rows than ranks. Iterating raises DataError when a shard is damaged.
    """

    def __init__(
        self,
        stream: TokenStream,
        batch: int,
        rank: int,
        ranks: int,
        micro_batch: int,
        consumed: int = 0,
        part: tuple[int, int] = (0, 1),
        quarantine: Quarantine | None = None,
    ):
        self.stream, self.batch = stream, batch
        self._place, self._part = (rank, ranks, micro_batch), part
        self._begin(consumed, quarantine or Quarantine())

    def seek(self, consumed: int, quarantine: Quarantine) -> None:
        """Go on from another row, without those in quarantine."""
        self.close()
        self._begin(consumed, quarantine)

    def _begin(self, consumed: int, quarantine: Quarantine) -> None:
        self.consumed, self.quarantine = consumed, quarantine
        self._read = quarantine.read_before(consumed)
        self._steps = read_ahead(self._reader(self._read, quarantine), self.stream.config.workers, self.stream.config.prefetch)

    def _reader(self, first: int, quarantine: Quarantine) -> Callable[[int], list[Batch]]:
        """The function from a step to its micro-batches. The threads know the stream but not this object: dropping it ends them."""
        (rank, ranks, micro_batch), part, stream, batch = self._place, self._part, self.stream, self.batch
        size = micro_batches_of(batch, ranks, micro_batch) * micro_batch

        def read(step: int) -> list[Batch]:
            positions = quarantine.rows(np.arange(batch) + (first + step * batch))
            mine = positions[share_of_rank(stream.lanes(positions), rank, ranks)]
            rows = stream.rows(mine)
            # a row whose state comes from one that is left out
            rows.starts[quarantine.holds(mine - batch), 0] = True
            rows = _filled_up(rows, stream.padding(size - len(mine)))
            return [micro.part(*part) for micro in Batch.from_rows(rows).split(micro_batch)]

        return read

    def __next__(self) -> list[Batch]:
        micro_batches = next(self._steps)
        self._read += self.batch
        self.consumed = int(self.quarantine.rows(np.array(self._read - 1))) + 1
        return micro_batches

    def mine(self, rows: np.ndarray) -> np.ndarray:
        """Those of a step's rows that this rank reads."""
        rank, ranks, _ = self._place
        return rows[share_of_rank(self.stream.lanes(rows), rank, ranks)]

    def rows_by_micro_batch(self) -> list[np.ndarray]:
        """int64 [micro_batch] for each micro-batch: which rows of the next step's batch it holds, -1 for padding."""
        rank, ranks, micro_batch = self._place
        count = micro_batches_of(self.batch, ranks, micro_batch)
        rows = np.full((count, micro_batch), -1)
        mine = share_of_rank(self.stream.lanes(self.consumed + np.arange(self.batch)), rank, ranks)
        rows.reshape(-1)[: len(mine)] = mine
        return list(rows)

    def state(self) -> dict[str, str | int]:
        """All that resuming needs: the stream's identity, and the rows consumed by the steps handed out so far."""
        return {**self.stream.identity(), "consumed": self.consumed}

    def check_state(self, saved: dict) -> None:
        """Raise DataError unless `saved` belongs to this very stream."""
        self.stream.check_state(saved)

    def close(self) -> None:
        """End the reading threads."""
        self._steps.close()


class HeldOutBatches:
    """One rank's micro-batches over a held-out split: every token once, in fixed order; iterate as often as you like.

    Shards are cut every T tokens, whatever the training's packing. Every rank gets the same number of steps: rows past the end are
    not scored.

    Args:
        batch, rank, ranks, micro_batch, part: as in `Batches`. limit: this many rows at most, spread evenly over the split.

    Raises:
        DataError: an empty split. ConfigError: `batch` that ranks x micro_batch does not divide.
    """

    def __init__(
        self,
        manifest: Manifest,
        split: str,
        sequence_length: int,
        batch: int,
        rank: int = 0,
        ranks: int = 1,
        micro_batch: int | None = None,
        limit: int | None = None,
        part: tuple[int, int] = (0, 1),
    ):
        if sequence_length < 1 or (limit is not None and limit < 1):
            raise ConfigError(
                f"sequence_length ({sequence_length}) and limit ({limit}) must be at least 1; leave limit out for all"
            )
        self._tape = Tape(manifest, manifest.split(split), OpenFiles())
        self._cut = Concat(self._tape, sequence_length)
        self._document_token, self._sequence_length = manifest.tokenizer.document_token, sequence_length
        self.sequences = len(self._cut) if limit is None else min(limit, len(self._cut))
        self._micro_batch = micro_batch or batch // ranks
        self._share = micro_batches_of(batch, ranks, self._micro_batch) * self._micro_batch
        self._batch, self._rank, self._part = self._share * ranks, rank, part

    def __len__(self) -> int:
        """Steps."""
        return -(-self.sequences // self._batch)

    def __iter__(self) -> Iterator[list[Batch]]:
        for step in range(len(self)):
            first = step * self._batch + self._rank * self._share
            rows = Rows.padding(self._share, self._sequence_length, self._document_token)
            for n, i in enumerate(range(first, min(first + self._share, self.sequences))):
                self._tape.fill(rows, n, self._cut.spans(i * len(self._cut) // self.sequences))
            yield [micro.part(*self._part) for micro in Batch.from_rows(rows).split(self._micro_batch)]


def micro_batches_of(batch: int, ranks: int, micro_batch: int) -> int:
    """Micro-batches of a rank in a step of `batch` rows; they have room for the largest share. Raises ConfigError."""
    if micro_batch < 1 or not 1 <= ranks <= batch:
        raise ConfigError(
            f"batch ({batch} sequences) must hold one for each of the ranks ({ranks}), and a micro-batch ({micro_batch}) "
            f"at least one; use a batch of {max(1, ranks)} or more"
        )
    return ceil(ceil(batch / ranks) / micro_batch)


def _filled_up(rows: Rows, padding: Rows) -> Rows:
    return Rows(*(np.concatenate(pair) for pair in zip(rows, padding, strict=True))) if len(padding.tokens) else rows
