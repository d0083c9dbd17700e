"""Batches: what a data-parallel rank trains and validates on.

Step by step, the ranks together take the next `batch` sequences of the global order; rank r takes the r-th of `ranks` equal parts.
So the order of training depends on neither ranks, micro-batch, prefetching nor restarts, and its whole state is `consumed`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from llm.data.manifest import Manifest
from llm.data.prefetch import prefetched
from llm.data.shard import OpenFiles
from llm.data.stream import PAD, TokenStream, Windows, empty_rows
from llm.docs import Docs
from llm.errors import ConfigError

NOT_SCORED = -100


@dataclass(frozen=True)
class Batch:
    """tokens_BT: int64. labels_BT: int64, the next token; -100 is not scored. docs: where documents start."""

    tokens_BT: Tensor
    labels_BT: Tensor
    docs: Docs

    @classmethod
    def from_rows(cls, tokens: np.ndarray, starts: np.ndarray) -> "Batch":
        """From tokens [B, T + 1] and starts [B, T]: labels are the tokens shifted by one, PAD is not scored."""
        rows = torch.from_numpy(tokens)
        labels = rows[:, 1:].masked_fill(rows[:, 1:] == PAD, NOT_SCORED)
        return cls(rows[:, :-1].clamp(min=0), labels, Docs(torch.from_numpy(starts)))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        tokens, labels = (tensor.to(device, non_blocking=non_blocking) for tensor in (self.tokens_BT, self.labels_BT))
        return Batch(tokens, labels, self.docs.to(device, non_blocking))

    def split(self, size: int) -> list["Batch"]:
        """Micro-batches of `size` rows, the last one possibly smaller."""
        parts = self.tokens_BT.split(size), self.labels_BT.split(size), self.docs.starts_BT.split(size)
        return [Batch(tokens, labels, Docs(starts)) for tokens, labels, starts in zip(*parts, strict=True)]

    @property
    def scored(self) -> Tensor:
        """int64 scalar: labels that are scored."""
        return (self.labels_BT != NOT_SCORED).sum()


class Batches(Iterator[list[Batch]]):
    """One rank's micro-batches, step after step, without end.

    Args:
        batch: sequences per step, all ranks together. micro_batch: rows per micro-batch. consumed: sequences of earlier steps.

    Raises:
        ConfigError: `batch` that ranks x micro_batch does not divide. Iterating raises DataError when a shard is damaged.
    """

    def __init__(self, stream: TokenStream, batch: int, rank: int, ranks: int, micro_batch: int, consumed: int = 0):
        share = share_of(batch, ranks, micro_batch)
        self.stream, self.batch, self.consumed = stream, batch, consumed
        # the reader knows the stream but not this object: dropping it ends the thread
        steps = _steps(stream, consumed + rank * share, share, batch, micro_batch)
        self._steps = prefetched(steps, stream.config.prefetch)

    def __next__(self) -> list[Batch]:
        micro_batches = next(self._steps)
        self.consumed += self.batch
        return micro_batches

    def state(self) -> dict[str, str | int]:
        """All that resuming needs: the stream's identity, and the sequences consumed by the steps handed out so far."""
        return {**self.stream.identity(), "consumed": self.consumed}

    def check_state(self, saved: dict) -> None:
        """Raise DataError unless `saved` belongs to this very stream."""
        self.stream.check_state(saved)

    def close(self) -> None:
        """End the reading thread."""
        self._steps.close()


class HeldOutBatches:
    """One rank's micro-batches over a held-out split: every window once, in fixed order; iterate as often as you like.

    Every rank gets the same number of steps: rows past the end, and tokens past the end of a shard, are not scored.

    Args:
        batch, rank, ranks, micro_batch: as in `Batches`. limit: this many sequences at most, spread evenly over the split.

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
    ):
        if sequence_length < 1 or (limit is not None and limit < 1):
            raise ConfigError(
                f"sequence_length ({sequence_length}) and limit ({limit}) must be at least 1; leave limit out for all"
            )
        self._windows = Windows(manifest, manifest.split(split), sequence_length, OpenFiles(), tail=True)
        self.sequences = len(self._windows) if limit is None else min(limit, len(self._windows))
        self._micro_batch = micro_batch or batch // ranks
        self._share = share_of(batch, ranks, self._micro_batch)
        self._batch, self._rank = batch, rank

    def __len__(self) -> int:
        """Steps."""
        return -(-self.sequences // self._batch)

    def __iter__(self) -> Iterator[list[Batch]]:
        for step in range(len(self)):
            first = step * self._batch + self._rank * self._share
            tokens, starts = empty_rows(self._share, self._windows.sequence_length)
            starts[:, 0] = True
            for row, i in enumerate(range(first, min(first + self._share, self.sequences))):
                self._windows.read(i * len(self._windows) // self.sequences, tokens[row], starts[row])
            yield Batch.from_rows(tokens, starts).split(self._micro_batch)


def share_of(batch: int, ranks: int, micro_batch: int) -> int:
    """Rows of a step that one rank takes. Raises ConfigError unless they are equal and make whole micro-batches."""
    if batch < 1 or ranks < 1 or micro_batch < 1 or batch % (ranks * micro_batch):
        unit = max(1, ranks) * max(1, micro_batch)
        raise ConfigError(
            f"batch ({batch} sequences) must be a positive multiple of ranks ({ranks}) x micro-batch ({micro_batch}); "
            f"use batch {max(1, round(batch / unit)) * unit} or another micro-batch"
        )
    return batch // ranks


def _steps(stream: TokenStream, first: int, share: int, batch: int, micro_batch: int) -> Iterator[list[Batch]]:
    while True:
        yield Batch.from_rows(*stream.rows(np.arange(first, first + share))).split(micro_batch)
        first += batch
