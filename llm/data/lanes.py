"""The order of training over L canonical lanes: at N nodes, N dividing L, each node reads about 1/N of the bytes.

A source's sequences, in stored order, are cut into L runs of equal size (within one): its lanes. Position i of the global order
belongs to a lane, whatever N is; the sequence there is the next one of its (source, lane), permuted anew in every epoch of that
lane. Node n owns the lanes from n L / N to (n + 1) L / N, which is a run of the stored sequences. The order is a function of
(seed, weights, sizes, L) and i alone; N only says who reads what. At another N each node reads 1 / gcd(N, L) of the bytes, or a
little more where batches are cut within a lane.

Lanes in turn. The sources' schedule (llm.data.mixture) has period P. With g = gcd(P, L) and M = P L / g, write i = b M + u; then

    place = (i + b) mod L,    lane = the bits of place reversed,    source = schedule(u mod P).

- Any N | L consecutive positions, within one b, fall on N different nodes: place mod N is the lane's upper bits. So a batch that N
  divides gives each node an equal share of positions, all in its own lanes, and ranks that are neighbours on a node take
  neighbouring lanes: a rank's share is its part of the batch sorted by lane (`share_of_rank`).
- For one b a place meets the residues of i mod P in one class mod g, each once; b moves the classes on, so after g M = P L
  positions each (source, lane) was drawn exactly W_s times. No lane starves, also where P and L are both even.
- How often (source, lane) was drawn before i, which is the index into its run, is a sum of three parts: whole rounds of g, whole
  values of b since then, and positions of this b. In the last, a lane steps through its class by L mod P, a cycle of P / g:
  draws of s between two places of that cycle are counted by bisection. Nothing is replayed; the tables hold about 3 P numbers.

A batch of G >= L positions holds about G / L of each lane, a smaller one no two of the same lane: pairs of one shard are rarer than
at random. Epochs are a lane's own: lanes end them a few draws apart. Sources of less than 64 L sequences have one lane, which every
node reads: their epochs are exact. Over an epoch a node visits its run of shards
in random order: it reads ranges, or keeps 1/N of the data.
"""

from collections.abc import Mapping
from fractions import Fraction
from math import gcd
from typing import NamedTuple

import numpy as np

from llm.data.mixture import Mixture
from llm.data.permutation import epoch_keys, permute, source_key
from llm.errors import ConfigError

LEAST_PER_LANE = 64
# far above any number of nodes
MAX_LANES = 1 << 20


class Places(NamedTuple):
    """Where sequences lie: int64 arrays of equal length. lane: of the order. epoch: of the source's lane. sequence: as stored."""

    source: np.ndarray
    lane: np.ndarray
    epoch: np.ndarray
    sequence: np.ndarray


class LaneOrder:
    """i -> where sequence i of training lies, i in [0, infinity).

    Args:
        sizes: sequences of each source. weights: of the same sources. seed: of the order. lanes: L, a power of two.
        drawn: of each source's lanes, int64 [L], how often they were drawn before position 0; none where a source is left out.

    Raises:
        ConfigError: lanes that are no power of two; weights that `Mixture` refuses.
    """

    def __init__(
        self,
        sizes: Mapping[str, int],
        weights: Mapping[str, float | Fraction],
        seed: int,
        lanes: int = 1,
        drawn: Mapping[str, np.ndarray] | None = None,
    ):
        if not 1 <= lanes <= MAX_LANES or lanes & (lanes - 1):
            near = min(1 << max(0, lanes.bit_length() - 1), MAX_LANES // 2)
            raise ConfigError(f"data.lanes ({lanes}) must be a power of two up to {MAX_LANES}; use {near} or {2 * near}")
        self.lanes = lanes
        self.mixture = Mixture({name: weights[name] for name in sizes})
        self.turns = Turns(self.mixture, lanes)
        self._reversed = _reversed_bits(lanes)
        self._sizes = np.array(list(sizes.values()), dtype=np.int64)
        assert (self._sizes > 0).all(), "a source without sequences"
        self.has_lanes = (self._sizes >= LEAST_PER_LANE * lanes) & (lanes > 1)
        self._keys = np.array([_lane_keys(seed, name, lanes, cut) for name, cut in zip(sizes, self.has_lanes, strict=True)])
        self._before = dict(drawn or {})
        self._offsets = np.array([self._before.get(name, np.zeros(lanes, dtype=np.int64)) for name in sizes])

    def __call__(self, i: np.ndarray) -> Places:
        """The places of positions i."""
        i = np.asarray(i, dtype=np.int64)
        source, drawn = self.mixture(i)
        place = self.turns.place(i)
        order_lane = self._reversed[place]
        cut = self.has_lanes[source]
        drawn = np.where(cut, self.turns.drawn(i), drawn)
        lane = np.where(cut, order_lane, 0)
        drawn = drawn + self._offsets[source, lane]
        first, last = self._run(source, lane)
        epoch, index = np.divmod(drawn, last - first)
        sequence = first + permute(index, last - first, epoch_keys(self._keys[source, lane], epoch))
        return Places(source, order_lane, epoch, sequence)

    def drawn(self, i: int) -> dict[str, np.ndarray]:
        """Of each source's lanes, int64 [lanes]: how often they were drawn before position i. A source without lanes has one."""
        found, places = dict(self._before), np.arange(self.lanes)
        for s, (name, count) in enumerate(zip(self.mixture.names, self.mixture.counts(i), strict=True)):
            here = np.zeros(self.lanes, dtype=np.int64)
            if self.has_lanes[s]:
                here[self._reversed] = self.turns.drawn_at(np.full_like(places, i), places, np.full_like(places, s))
            else:
                here[0] = count
            found[name] = self._offsets[s] + here
        return found

    def epochs(self, i: int) -> dict[str, float]:
        """How often the sequences of each source were drawn before position i."""
        sizes = dict(zip(self.mixture.names, self._sizes.tolist(), strict=True))
        before = dict(zip(self.mixture.names, self._offsets.sum(1).tolist(), strict=True))
        return {name: times + before[name] / sizes[name] for name, times in self.mixture.epochs(i, sizes).items()}

    def _run(self, source: np.ndarray, lane: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First and one past the last stored sequence of lanes of sources."""
        size, lanes = self._sizes[source], np.where(self.has_lanes[source], self.lanes, 1)
        # size = whole * lanes + over, so that the product stays small
        whole, over = np.divmod(size, lanes)
        return lane * whole + lane * over // lanes, (lane + 1) * whole + (lane + 1) * over // lanes


def share_of_rank(lanes: np.ndarray, rank: int, ranks: int) -> np.ndarray:
    """Which positions of a step a rank takes, ascending: its part of them all in the order of their `lanes`.

    Parts are as equal as can be, the first ones by one larger. The last ones are empty where there are fewer positions than ranks.
    """
    return np.sort(np.array_split(np.argsort(lanes, kind="stable"), ranks)[rank])


class Turns:
    """Places in turn, and how often each (source, place) came before: see the module's text."""

    def __init__(self, mixture: Mixture, lanes: int):
        self.lanes, self._table, self._shares = lanes, mixture.table, mixture.shares
        period, sources = mixture.period, len(mixture.shares)
        self._period = period
        self._classes = gcd(period, lanes)
        self._cycle = period // self._classes
        self._span = self._cycle * lanes
        residue = np.arange(period)
        # residue = class + step * lanes mod period, step in [0, cycle)
        inverse = pow(lanes // self._classes, -1, self._cycle) if self._cycle > 1 else 0
        self._step = residue // self._classes * inverse % self._cycle
        kind = residue % self._classes * sources + self._table
        self._sorted = np.sort(kind * self._cycle + self._step)
        counts = np.bincount(kind, minlength=self._classes * sources).reshape(self._classes, sources)
        self._counts = counts
        # twice around, so that any run of classes is one difference
        self._summed = np.concatenate([np.zeros((1, sources), dtype=np.int64), np.cumsum(np.tile(counts, (2, 1)), axis=0)])

    def place(self, i: np.ndarray) -> np.ndarray:
        """int64 in [0, lanes)."""
        return (i + i // self._span) % self.lanes

    def drawn(self, i: np.ndarray) -> np.ndarray:
        """How often the source of position i was drawn before, at the place of position i."""
        return self.drawn_at(i, self.place(i), self._table[i % self._period])

    def drawn_at(self, i: np.ndarray, place: np.ndarray, source: np.ndarray) -> np.ndarray:
        """How often each source was drawn before position i, at each place."""
        b, u = np.divmod(i, self._span)
        column = (place - b) % self.lanes
        # rows of this b in which the column comes before u
        row = -((column - u) // self.lanes)
        rounds, within = np.divmod(b, self._classes)
        # since the last whole round this place has met `within` classes, one after the other downwards from `top`
        top = (column + b) % self._classes + self._classes + 1
        before = self._summed[top, source] - self._summed[top - within, source]
        class_ = column % self._classes
        start = self._step[column % self._period]
        now = start + row
        wrapped = now >= self._cycle
        here = self._below(class_, source, now - wrapped * self._cycle) - self._below(class_, source, start)
        here = here + wrapped * self._counts[class_, source]
        return rounds * self._shares[source] + before + here

    def _below(self, class_: np.ndarray, source: np.ndarray, step: np.ndarray) -> np.ndarray:
        """Draws of a source among the first `step` steps of a class's cycle, plus what (class, source) begins with."""
        kind = class_ * len(self._shares) + source
        return np.searchsorted(self._sorted, kind * self._cycle + step)


def _lane_keys(seed: int, name: str, lanes: int, cut: bool) -> np.ndarray:
    """uint64 [lanes]: keys of a source's lanes; an uncut source has its own key alone."""
    keys = [source_key(seed, f"{name}/lane {lane}" if cut else name) for lane in range(lanes if cut else 1)]
    return np.array(keys + [0] * (lanes - len(keys)), dtype=np.uint64)


def _reversed_bits(lanes: int) -> np.ndarray:
    """int64 [lanes]: each number below `lanes`, a power of two, with its bits in reverse."""
    numbers = np.zeros(1, dtype=np.int64)
    while len(numbers) < lanes:
        numbers = np.concatenate([2 * numbers, 2 * numbers + 1])
    return numbers
