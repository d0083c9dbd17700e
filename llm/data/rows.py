"""Which spans of which tape are in training row i: the orders of the three packings.

`concat` and `bestfit` cut every tape into a fixed list of sequences, which the canonical lanes (`lanes.py`) permute and blend.
`contiguous` fixes rows of the batch: row i goes on where row i - L ended, L rows being dealt out to the sources by weight.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple, Protocol

import numpy as np

from llm.data.config import LANES, DataConfig
from llm.data.contiguous import ContiguousLanes
from llm.data.lanes import LaneOrder
from llm.data.manifest import Manifest
from llm.data.mixture import dealt, repetitions
from llm.data.permutation import epoch_keys, permute, source_key
from llm.data.plan import Plan, planned
from llm.data.tape import Span, Tape
from llm.errors import ConfigError

# positions whose places are found at once, which takes little longer than one, and such blocks in memory
BLOCK, BLOCKS = 1024, 16

Weights = Mapping[str, float | Fraction]


class Place(NamedTuple):
    """Where row i lies. source: a number. sequence: of the source, as stored. spans: of its tape."""

    source: int
    epoch: int
    sequence: int
    spans: list[Span]
    continues: bool = False


class Sequences(Protocol):
    """The sequences that a tape is cut into."""

    def __len__(self) -> int: ...

    def spans(self, i: int) -> list[Span]: ...


class Concat:
    """Sequence i is the tape from i T to (i + 1) T; the last one may be shorter."""

    def __init__(self, tape: Tape, sequence_length: int):
        self._tokens, self._sequence_length = len(tape), sequence_length

    def __len__(self) -> int:
        return -(-self._tokens // self._sequence_length)

    def spans(self, i: int) -> list[Span]:
        low = i * self._sequence_length
        return [Span(low, min(low + self._sequence_length, self._tokens))]


class BestFit:
    """The sequences of a plan that belong to the shards of a tape."""

    def __init__(self, tape: Tape, plan: Plan):
        number = {name: group for group, name in enumerate(plan.groups)}
        groups = np.array([number[reader.shard.path] for reader in tape.readers])
        # of each shard: where its sequences begin in the plan, and in this tape
        self._begin = plan.sequences[groups].tolist()
        self._first = [0, *np.cumsum(plan.sequences[groups + 1] - plan.sequences[groups]).tolist()]
        self._tape, self._plan = tape, plan

    def __len__(self) -> int:
        return self._first[-1]

    def spans(self, i: int) -> list[Span]:
        k = bisect_right(self._first, i) - 1
        _, (offsets, lengths) = self._plan.pieces(self._begin[k] + i - self._first[k])
        lows = offsets + self._tape.first[k]
        return [Span(low, low + length) for low, length in zip(lows.tolist(), lengths.tolist(), strict=True)]


def packed(tapes: Mapping[str, Tape], manifest: Manifest, split: str, config: DataConfig) -> dict[str, Sequences]:
    """Every tape, cut as `config.packing` says. The plan of `bestfit` is read, or made and kept, beside the manifest."""
    if config.packing == "concat":
        return {name: Concat(tape, config.sequence_length) for name, tape in tapes.items()}
    plan = planned(manifest, split, config.sequence_length)
    return {name: BestFit(tape, plan) for name, tape in tapes.items()}


class PermutedRows:
    """Sequences in the canonical lanes' order. Raises ConfigError: lanes that are no power of two.

    begin: the run's row that this order begins with. after: an order of the same sequences and lanes, and the row at which it
    ended: every source's lane goes on from there, and with the same weights so does the schedule.
    """

    def __init__(
        self,
        sequences: Mapping[str, Sequences],
        weights: Weights,
        config: DataConfig,
        seed: int,
        begin: int = 0,
        after: "tuple[PermutedRows, int] | None" = None,
    ):
        self._sequences, self._seed = dict(sequences), seed
        self._names = list(sequences)
        self._sizes = {name: len(cut) for name, cut in sequences.items()}
        self.canonical_lanes = LANES if config.lanes is None else config.lanes
        self.begin, self.weights = begin, dict(weights)
        drawn: dict[str, np.ndarray] = {}
        if after is not None:
            last, went = after[0], after[1] - after[0].begin
            if last.weights == self.weights:
                self.begin, drawn = begin - went, last.order.drawn(0)
            else:
                drawn = last.order.drawn(went)
        self.order: LaneOrder = LaneOrder(self._sizes, weights, seed, self.canonical_lanes, drawn)
        self._block = lru_cache(BLOCKS)(self._places_of_block)

    def __len__(self) -> int:
        return sum(self._sizes.values())

    @property
    def shares(self) -> dict[str, Fraction]:
        return self.order.mixture.weights

    def places(self, i: np.ndarray) -> Iterator[Place]:
        for k, at in self._blocks(i):
            source, _, epoch, sequence = self._block(k)
            yield self._place(source[at], epoch[at], sequence[at])

    def lanes(self, i: np.ndarray) -> np.ndarray:
        return np.array([self._block(k)[1][at] for k, at in self._blocks(i)], dtype=np.int64)

    def _blocks(self, i: np.ndarray) -> Iterator[tuple[int, int]]:
        """The block of each position, and its place there."""
        return zip(*(x.tolist() for x in np.divmod(i - self.begin, BLOCK)), strict=True)

    def _places_of_block(self, k: int) -> list[list[int]]:
        return [x.tolist() for x in self.order(np.arange(k * BLOCK, (k + 1) * BLOCK))]

    def _place(self, source: int, epoch: int, sequence: int) -> Place:
        return Place(source, epoch, sequence, self._sequences[self._names[source]].spans(sequence))

    def substitute(self, place: Place, attempt: int) -> Place:
        """Another sequence of the same source, by its number, epoch and the attempt alone."""
        name = self._names[place.source]
        key = epoch_keys(source_key(self._seed, f"{name}/instead {attempt}"), place.epoch)
        return self._place(place.source, place.epoch, int(permute(np.array([place.sequence]), self._sizes[name], key)[0]))

    def repetitions(self, rows: int) -> list[str]:
        return repetitions(self.order.epochs(rows - self.begin), rows, self.shares)


class ContiguousRows:
    """Rows of the batch that each go on with their documents. lanes: the batch's rows, dealt out by weight, one at least each.

    begin, after: as in `PermutedRows`, of an order with the same weights and batch.
    """

    def __init__(
        self,
        tapes: Mapping[str, Tape],
        weights: Weights,
        config: DataConfig,
        seed: int,
        batch: int | None,
        begin: int = 0,
        after: "tuple[ContiguousRows, int] | None" = None,
    ):
        self.begin: int = begin if after is None else begin - (after[1] - after[0].begin)
        lanes = batch if config.lanes is None else config.lanes
        if lanes is None or (batch is not None and batch != lanes):
            raise ConfigError(
                f"data.lanes ({config.lanes}) must be the batch ({batch}) for data.packing (contiguous), "
                "whose rows carry on from step to step; leave data.lanes out, and the batch as it was"
            )
        if lanes < len(tapes):
            raise ConfigError(
                f"the batch ({lanes}) must have a row for each of the {len(tapes)} sources with data.packing (contiguous); "
                f"use train.batch={len(tapes)} or more, or fewer sources"
            )
        self.canonical_lanes, self._names = lanes, list(tapes)
        self._dealt = dealt([weights[name] for name in tapes], lanes)
        self._first = list(accumulate(self._dealt, initial=0))
        self._sources = [
            ContiguousLanes(tape.lengths(), share, config.sequence_length, seed, name)
            for (name, tape), share in zip(tapes.items(), self._dealt, strict=True)
        ]

    def __len__(self) -> int:
        return sum(map(len, self._sources))

    @property
    def shares(self) -> dict[str, Fraction]:
        return {name: Fraction(share, self.canonical_lanes) for name, share in zip(self._names, self._dealt, strict=True)}

    def places(self, i: np.ndarray) -> Iterator[Place]:
        for step, lane in zip(*(x.tolist() for x in np.divmod(i - self.begin, self.canonical_lanes)), strict=True):
            source = bisect_right(self._first, lane) - 1
            sequence = step * self._dealt[source] + lane - self._first[source]
            epoch, (offsets, lengths), continues = self._sources[source].row(sequence)
            spans = [Span(low, low + n) for low, n in zip(offsets.tolist(), lengths.tolist(), strict=True)]
            yield Place(source, epoch, sequence, spans, continues)

    def lanes(self, i: np.ndarray) -> np.ndarray:
        # a row of the batch stays with its rank, whose state goes on
        return (i - self.begin) % self.canonical_lanes

    def repetitions(self, rows: int) -> list[str]:
        steps = (rows - self.begin) / self.canonical_lanes
        epochs = {name: steps / source.steps for name, source in zip(self._names, self._sources, strict=True)}
        return repetitions(epochs, rows, self.shares)
