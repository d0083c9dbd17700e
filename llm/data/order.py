"""The order of training sequences: a pure function i -> (source, epoch, window), with no state and no list of indices.

Sources are blended by a schedule that repeats: over a period of P draws source s is drawn exactly W_s times, and at every prefix
of i draws its count is within 1 of (W_s / P) i. Windows of a source are permuted anew in every epoch by a Feistel network with
cycle walking (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002): O(1) memory, any index in microseconds.
"""

import heapq
from collections.abc import Mapping
from fractions import Fraction
from math import lcm
from typing import NamedTuple

import numpy as np
import xxhash

MAX_PERIOD = 1 << 16
ROUNDS = 6
GOLDEN = 0x9E3779B97F4A7C15
WORD = (1 << 64) - 1


class Blend:
    """The repeating schedule of sources.

    Weights whose common denominator is at most 65,536 are kept exactly; others are rounded to multiples of 1/65,536 (at least one).

    Args:
        weights: positive, in any unit.
    """

    def __init__(self, weights: list[float]):
        self.shares = _shares(weights)
        self.period = sum(self.shares)
        self._source = _schedule(self.shares)
        self._rank = np.empty(self.period, dtype=np.int64)
        for source, share in enumerate(self.shares):
            self._rank[self._source == source] = np.arange(share)

    def __call__(self, i: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For draws i: the source drawn, and how often it was drawn before."""
        turn, place = np.divmod(i, self.period)
        source = self._source[place]
        return source, turn * np.asarray(self.shares)[source] + self._rank[place]


class Draws(NamedTuple):
    """Where sequences lie: int64 arrays of equal length."""

    source: np.ndarray
    epoch: np.ndarray
    window: np.ndarray


class Order:
    """i -> (source, epoch, window), i in [0, infinity).

    Args:
        windows: per source, windows in one epoch. weights: per source. seed: of the run's order.
    """

    def __init__(self, windows: Mapping[str, int], weights: Mapping[str, float], seed: int):
        self.blend = Blend([weights[name] for name in windows])
        self._windows = np.array(list(windows.values()), dtype=np.int64)
        self._keys = np.array([xxhash.xxh3_64_intdigest(f"{seed}/{name}".encode()) for name in windows], dtype=np.uint64)

    def __call__(self, i: np.ndarray) -> Draws:
        source, count = self.blend(np.asarray(i, dtype=np.int64))
        epoch, place = np.divmod(count, self._windows[source])
        key = _mix(self._keys[source] + epoch.astype(np.uint64) * np.uint64(GOLDEN))
        window = np.empty_like(place)
        for s in np.unique(source):
            here = source == s
            window[here] = permute(place[here], int(self._windows[s]), key[here])
        return Draws(source, epoch, window)


def permute(index: np.ndarray, size: int, key: np.ndarray) -> np.ndarray:
    """A pseudo-random bijection of [0, size) for each key.

    Args:
        index: int64 in [0, size). key: uint64, like index.
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    out = _feistel(index.astype(np.uint64), half, key)
    # the network permutes [0, 4^half), at most 4 size: walk the cycle until it comes back inside
    while (outside := np.flatnonzero(out >= size)).size:
        out[outside] = _feistel(out[outside], half, key[outside])
    return out.astype(np.int64)


def _feistel(x: np.ndarray, half: np.uint64, key: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = x >> half, x & mask
    for r in range(1, ROUNDS + 1):
        left, right = right, left ^ (_mix(right + key + np.uint64(r * GOLDEN & WORD)) & mask)
    return left << half | right


def _mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele, Lea and Flood, 2014): every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _shares(weights: list[float]) -> list[int]:
    """Draws of each source in one period: proportional to the weights, exact where the period stays short."""
    exact = [Fraction(repr(float(weight))) for weight in weights]
    total = sum(exact)
    exact = [weight / total for weight in exact]
    period = lcm(*(weight.denominator for weight in exact))
    if period <= MAX_PERIOD:
        return [int(weight * period) for weight in exact]
    # largest remainders, after one draw for everybody
    free = MAX_PERIOD - len(exact)
    shares = [1 + int(weight * free) for weight in exact]
    by_remainder = sorted(range(len(exact)), key=lambda s: (int(exact[s] * free) - exact[s] * free, s))
    for s in by_remainder[: MAX_PERIOD - sum(shares)]:
        shares[s] += 1
    return shares


def _schedule(shares: list[int]) -> np.ndarray:
    """int64 [period]: the source of each draw.

    The n-th draw of a source (n from 0) must lie in [floor(n P / W), ceil((n + 1) P / W)): then its count is always within 1 of
    its due. The shares fill the period exactly, so earliest deadline first meets all these deadlines (Baruah et al.,
    "Proportionate Progress", 1996).
    """
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
