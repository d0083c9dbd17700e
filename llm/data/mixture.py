"""Which source a training sequence comes from: a pure function i -> (source, epoch, position in the epoch).

The law: source s has share W_s of a period of P = sum of W draws, and among the first i draws, for every i, its count c_s(i) obeys

    |c_s(i) - i W_s / P| < 1.

Why such a schedule exists and is found: the law says that draw n of source s (n from 0) lies in the slots
[floor(n P / W_s), ceil((n + 1) P / W_s)). Spread each draw evenly, W_s / P to a slot: every slot is filled exactly and every draw
lies inside of its window. So slots and draws have a fractional perfect matching, hence a whole one (their graph is bipartite), and
for unit jobs with releases and deadlines the earliest deadline first finds it (Baruah et al., "Proportionate Progress", 1996).
At P every window closes and opens, so the schedule repeats: a table of P draws gives any i by one division.

Weights count as the decimals or fractions they are written as. If their common denominator is at most 65,536 they are kept exactly.
Others become multiples of 1/65,536, at least one each, by largest remainders: less than (sources)/65,536 from what was asked;
`Mixture.weights` are those that hold.
"""

import heapq
from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import inf, lcm
from typing import NamedTuple

import numpy as np

from llm.errors import ConfigError

MAX_PERIOD = 1 << 16
# "up to 4 epochs of repeated data yields negligible changes to loss": Muennighoff et al., arXiv:2305.16264
MAX_EPOCHS = 4.0


class Draws(NamedTuple):
    """Where sequences lie: int64 arrays of equal length. source: a number. position: within the epoch, not yet permuted."""

    source: np.ndarray
    epoch: np.ndarray
    position: np.ndarray


class Mixture:
    """The repeating schedule of sources.

    Args:
        weights: by source, in any unit; floats count as the decimals they are printed as.

    Raises:
        ConfigError: no source, more than 65,536, or a weight that is not positive and finite.
    """

    def __init__(self, weights: Mapping[str, float | Fraction]):
        _check(weights)
        self.names = tuple(weights)
        self.shares = np.array(_shares(list(weights.values())), dtype=np.int64)
        self.period = int(self.shares.sum())
        # int64 [period]: the source of each draw
        self.table = _schedule(self.shares.tolist())
        self._before = np.empty_like(self.table)
        self._before[np.argsort(self.table, kind="stable")] = np.concatenate([np.arange(share) for share in self.shares])

    @property
    def weights(self) -> dict[str, Fraction]:
        """The weights that hold; they add up to 1."""
        return {name: Fraction(int(share), self.period) for name, share in zip(self.names, self.shares, strict=True)}

    def __call__(self, i: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For draws i: the source drawn, and how often it was drawn before. int64."""
        turn, place = np.divmod(np.asarray(i, dtype=np.int64), self.period)
        source = self.table[place]
        return source, turn * self.shares[source] + self._before[place]

    def counts(self, i: int) -> np.ndarray:
        """int64 [sources]: draws of each source among the first i."""
        turn, place = divmod(i, self.period)
        return turn * self.shares + np.bincount(self.table[:place], minlength=len(self.names))

    def draws(self, i: np.ndarray, sizes: Mapping[str, int]) -> Draws:
        """Draws i, where an epoch of a source is `sizes` of its sequences: each once before any comes again."""
        source, before = self(i)
        epoch, position = np.divmod(before, self._sizes(sizes)[source])
        return Draws(source, epoch, position)

    def epochs(self, i: int, sizes: Mapping[str, int]) -> dict[str, float]:
        """How often the first i draws go through each source."""
        return dict(zip(self.names, (self.counts(i) / self._sizes(sizes)).tolist(), strict=True))

    def _sizes(self, sizes: Mapping[str, int]) -> np.ndarray:
        found = np.array([sizes[name] for name in self.names], dtype=np.int64)
        assert (found > 0).all(), "a source without sequences"
        return found


def repetitions(epochs: Mapping[str, float], rows: int, weights: Mapping[str, Fraction], most: float = MAX_EPOCHS) -> list[str]:
    """A warning for each source that `rows` go through more than `most` times."""
    return [
        f"source {name!r} is read {times:.1f} times in {rows} sequences; past {most:g} epochs repeated text teaches little: "
        f"lower its weight ({float(weights[name]):.4g}), train on fewer sequences, or add text"
        for name, times in epochs.items()
        if times > most
    ]


def _check(weights: Mapping[str, float | Fraction]) -> None:
    if not 1 <= len(weights) <= MAX_PERIOD:
        raise ConfigError(f"sources ({len(weights)}) must number 1 to {MAX_PERIOD}; merge small ones")
    for name, weight in weights.items():
        if not 0 < weight < inf:
            raise ConfigError(f"weight of source {name!r} ({weight}) must be positive and finite; leave the source out instead")


def _shares(weights: list[float | Fraction]) -> list[int]:
    """Draws of each source in one period: proportional to the weights, exact where the period stays short."""
    exact = _exact(weights)
    period = lcm(*(weight.denominator for weight in exact))
    if period <= MAX_PERIOD:
        return [int(weight * period) for weight in exact]
    return dealt(exact, MAX_PERIOD)


def _exact(weights: Sequence[float | Fraction]) -> list[Fraction]:
    """The decimals that floats are printed as, adding up to 1."""
    exact = [weight if isinstance(weight, Fraction) else Fraction(repr(float(weight))) for weight in weights]
    total = sum(exact)
    return [weight / total for weight in exact]


def dealt(weights: Sequence[float | Fraction], total: int) -> list[int]:
    """`total` things dealt out by weight, at least one each, by largest remainders after that; ties go to the first."""
    exact = _exact(weights)
    due = [weight * (total - len(exact)) for weight in exact]
    shares = [1 + int(things) for things in due]
    by_remainder = sorted(range(len(exact)), key=lambda s: (int(due[s]) - due[s], s))
    for s in by_remainder[: total - sum(shares)]:
        shares[s] += 1
    return shares


def _schedule(shares: list[int]) -> np.ndarray:
    """int64 [period]: the source of each draw, by earliest deadline first."""
    period = sum(shares)
    jobs = sorted((n * period // w, -(-(n + 1) * period // w), s) for s, w in enumerate(shares) for n in range(w))
    order, released = np.empty(period, dtype=np.int64), 0
    ready: list[tuple[int, int]] = []
    for slot in range(period):
        while released < period and jobs[released][0] <= slot:
            heapq.heappush(ready, jobs[released][1:])
            released += 1
        deadline, order[slot] = heapq.heappop(ready)
        assert slot < deadline, "a source missed its turn"
    return order
