"""Canonical lanes: one order for any number of nodes, of which each reads its share of the bytes, shuffled as well as at random."""

import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.lanes import LEAST_PER_LANE, LaneOrder, Places, Turns, share_of_rank
from llm.data.mixture import Mixture
from llm.data.permutation import epoch_keys, permute, source_key
from llm.errors import ConfigError

NODES = [1, 8, 64, 512]


def order_of(weights: list[float], size: int, lanes: int, seed: int = 0) -> LaneOrder:
    names = [f"s{k}" for k in range(len(weights))]
    return LaneOrder(dict.fromkeys(names, size), dict(zip(names, weights, strict=True)), seed, lanes)


def shards_of(sequences: np.ndarray, size: int, shards: int) -> np.ndarray:
    """The shard of stored sequences, when `shards` equal ones hold `size`."""
    return sequences * shards // size


# the order itself


@settings(max_examples=60, deadline=None)
@given(weights=st.lists(st.integers(1, 12), min_size=1, max_size=5), lanes=st.sampled_from([1, 2, 4, 8, 16]))
def test_draws_of_a_source_and_lane_are_counted_as_if_replayed(weights: list[int], lanes: int):
    mixture = Mixture({str(k): weight for k, weight in enumerate(weights)})
    turns = Turns(mixture, lanes)
    i = np.arange(2 * mixture.period * lanes + 3)
    seen: Counter = Counter()
    for key, drawn in zip(zip(mixture(i)[0].tolist(), turns.place(i).tolist(), strict=True), turns.drawn(i).tolist(), strict=True):
        assert drawn == seen[key]
        seen[key] += 1
    if len(i) > 3:
        # after period x lanes positions each lane has drawn each source alike
        for s, share in enumerate(mixture.shares):
            first = (mixture(i)[0] == s) & (i < mixture.period * lanes)
            assert (np.bincount(turns.place(i[first]), minlength=lanes) == share).all()


@settings(max_examples=25, deadline=None)
@given(
    weights=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    lanes=st.sampled_from([1, 2, 4, 8]),
    extra=st.integers(0, 40),
    seed=st.integers(0, 5),
)
def test_an_epoch_of_a_lane_is_each_of_its_sequences_once(weights: list[int], lanes: int, extra: int, seed: int):
    size = LEAST_PER_LANE * lanes + extra
    order = order_of(weights, size, lanes, seed)
    places = order(np.arange(3 * size * sum(weights)))
    for s in range(len(weights)):
        runs = []
        for lane in range(lanes):
            here = (places.source == s) & (places.lane == lane) & (places.epoch == 0)
            runs.append(np.sort(places.sequence[here]))
            again = (places.source == s) & (places.lane == lane) & (places.epoch == 1)
            assert np.array_equal(runs[-1], np.sort(places.sequence[again]))
            assert not np.array_equal(places.sequence[here], places.sequence[again])
        # lanes are runs of the stored sequences, of equal size within one
        assert np.array_equal(np.concatenate(runs), np.arange(size))
        assert {len(run) for run in runs} <= {size // lanes, size // lanes + 1}


def test_one_lane_is_the_mixture_with_each_epoch_permuted():
    sizes, weights = {"a": 1000, "b": 77}, {"a": 0.7, "b": 0.3}
    i = np.concatenate([np.arange(5000), 10**9 + np.arange(50)])
    places, draws = LaneOrder(sizes, weights, 1)(i), Mixture(weights).draws(i, sizes)
    assert np.array_equal(places.source, draws.source)
    assert np.array_equal(places.epoch, draws.epoch)
    names, keys = list(sizes), {name: source_key(1, name) for name in sizes}
    for source, epoch, position, sequence in zip(*draws, places.sequence, strict=True):
        name = names[source]
        assert sequence == permute(np.array([position]), sizes[name], epoch_keys(keys[name], epoch))[0]


def test_a_small_source_has_one_lane_and_exact_epochs():
    order = LaneOrder({"large": 64 * 64, "small": 100}, {"large": 0.5, "small": 0.5}, 0, lanes=64)
    assert order.has_lanes.tolist() == [True, False]
    places = order(np.arange(400))
    small = places.sequence[places.source == 1]
    assert np.array_equal(np.sort(small[:100]), np.arange(100))
    assert np.array_equal(np.sort(small[100:]), np.arange(100))


@given(i=st.lists(st.integers(0, 10**12), min_size=1, max_size=9))
def test_a_position_alone_is_what_it_is_in_a_block(i: list[int]):
    order = order_of([0.7, 0.3], 10**6, 32)
    block = order(np.array(i))
    for k, position in enumerate(i):
        assert [int(part[0]) for part in order(np.array([position]))] == [int(part[k]) for part in block]


@pytest.mark.parametrize("lanes", [0, 12, -8, 1 << 40])
def test_lanes_are_a_power_of_two(lanes: int):
    with pytest.raises(ConfigError, match=rf"lanes \({lanes}\) must be a power of two"):
        order_of([1.0], 10**6, lanes)


# nodes


@settings(deadline=None)
@given(
    nodes=st.sampled_from([1, 2, 3, 8, 24, 64]),
    per_node=st.integers(1, 3),
    rows=st.integers(1, 5),
    step=st.integers(0, 10**6),
    weights=st.sampled_from([[1], [7, 2, 1]]),
)
def test_the_ranks_shares_are_the_batch(nodes: int, per_node: int, rows: int, step: int, weights: list[int]):
    order, ranks = order_of(weights, 10**6, 64), nodes * per_node
    batch = ranks * rows
    positions = step * batch + np.arange(batch)
    shares = [positions[share_of_rank(order(positions).lane, rank, ranks)] for rank in range(ranks)]
    assert {len(share) for share in shares} == {rows}
    assert np.array_equal(np.sort(np.concatenate(shares)), positions)
    if 64 % nodes == 0:
        for rank, share in enumerate(shares):
            # all of it from the node's own lanes, wherever one span of the schedule ends
            assert (order(share).lane // (64 // nodes) == rank // per_node).all()


@given(batch=st.integers(1, 40), ranks=st.integers(1, 12), lanes=st.sampled_from([1, 4, 64]))
def test_ranks_that_do_not_divide_a_batch_take_a_row_more_or_less(batch: int, ranks: int, lanes: int):
    of_position = np.arange(batch) * 7 % lanes
    shares = [share_of_rank(of_position, rank, ranks) for rank in range(ranks)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(batch))
    assert max(map(len, shares)) == len(shares[0]) == -(-batch // ranks)
    assert len(shares[0]) - min(map(len, shares)) <= 1
    assert all((np.diff(share) > 0).all() for share in shares)


@pytest.mark.parametrize("nodes", NODES)
@pytest.mark.parametrize("weights", [[1.0], [0.7, 0.2, 0.1], [0.7123456, 0.2987654]], ids=["one", "three", "awkward"])
def test_each_node_reads_its_share_of_the_bytes(nodes: int, weights: list[float]):
    """Simulated: an epoch over 2,000 shards, 512 lanes, batches of 4,096; one sequence stands for T tokens."""
    lanes, size, shards, batch = 512, 131_072, 2000, 4096
    order = order_of(weights, size, lanes)
    i = np.arange(size * len(weights))
    places = order(i)
    owner = places.lane // (lanes // nodes)
    for step, node in ((0, 0), (17, nodes // 2), (31, nodes - 1)):
        here = slice(step * batch, (step + 1) * batch)
        assert np.array_equal(share_of_rank(places.lane[here], node, nodes), np.flatnonzero(owner[here] == node))
    stored = places.source * size + places.sequence
    ranges = distinct_by(owner, stored, nodes)
    whole = distinct_by(owner, places.source * shards + shards_of(places.sequence, size, shards), nodes)
    read = len(np.unique(stored))
    print(
        f"{nodes} nodes: each reads {100 * ranges.min() / read:.3f} to {100 * ranges.max() / read:.3f} % of the bytes by ranges, "
        f"at most {100 * whole.max() / (shards * len(weights)):.3f} % in whole shards"
    )
    assert ranges.max() <= 1.02 * read / nodes
    # the shards at the two ends of a node's run are shared with its neighbours
    assert whole.max() <= (shards / nodes + 2) * len(weights)


def distinct_by(owner: np.ndarray, what: np.ndarray, nodes: int) -> np.ndarray:
    """int64 [nodes]: how many different things each owner has."""
    pairs = np.unique(owner * (what.max() + 1) + what)
    return np.bincount(pairs // (what.max() + 1), minlength=nodes)


def test_at_other_numbers_of_nodes_each_reads_what_the_greatest_divisor_says():
    order = order_of([1.0], 65_536, 64)
    taken: list[set[int]] = [set() for _ in range(24)]
    for step in range(1000):
        lanes = order(step * 96 + np.arange(96)).lane
        for node, mine in enumerate(taken):
            mine.update(lanes[share_of_rank(lanes, node, 24)].tolist())
    print("lanes of each of 24 nodes:", [len(mine) for mine in taken])
    assert max(len(mine) for mine in taken) <= 64 // 8


# quality


def same_shard_ratio(order: Callable[[np.ndarray], Places], size: int, shards: int, batch: int, batches: int) -> float:
    """Pairs of one shard within a batch, over what a uniform shuffle of all sequences gives in the mean."""
    same = possible = 0.0
    for first in np.random.default_rng(0).integers(0, 10**7, batches) * batch:
        places = order(np.arange(first, first + batch))
        for s in np.unique(places.source):
            shard = shards_of(places.sequence[places.source == s], size, shards)
            counts = np.bincount(shard, minlength=shards)
            same += float((counts * (counts - 1)).sum())
            possible += len(shard) * (len(shard) - 1)
    return same / possible / ((size / shards - 1) / (size - 1))


@pytest.mark.parametrize("batch", [256, 512, 1024, 4096, 16_384])
@pytest.mark.parametrize("weights", [[1.0], [0.7, 0.2, 0.1]], ids=["one", "three"])
def test_pairs_of_one_shard_are_no_more_than_at_random(batch: int, weights: list[float]):
    size, shards = 10**7, 2000
    ratio = same_shard_ratio(order_of(weights, size, 512), size, shards, batch, batches=60)
    print(f"batch {batch}, {len(weights)} sources: pairs of one shard {ratio:.3f} x random")
    assert ratio <= 1.2


def test_the_measure_of_pairs_can_fail():
    """A shuffle within single shards gives a batch of one shard."""
    order = order_of([1.0], 10**6, 1)
    ratio = same_shard_ratio(order, 10**6, 100, 1000, batches=20)
    assert ratio == pytest.approx(1, abs=0.1)

    def stored(i: np.ndarray) -> Places:
        return order(i)._replace(sequence=i % 10**6)

    assert same_shard_ratio(stored, 10**6, 100, 1000, batches=20) > 90


def test_lanes_of_a_source_stay_side_by_side():
    """Epochs are a lane's own, but no lane is far ahead of another."""
    for weights in ([0.7, 0.2, 0.1], [0.5, 0.5], [0.7123456, 0.2987654]):
        order = order_of(weights, 10**6, 512)
        i = np.arange(10**6)
        places = order(i)
        for s in range(len(weights)):
            counts = np.bincount(places.lane[places.source == s], minlength=512)
            print(f"weights {weights}, source {s}: {counts.min()} to {counts.max()} draws of a lane")
            assert counts.max() - counts.min() <= 0.02 * counts.mean() + 4


@pytest.mark.parametrize("weights", [{"a": 0.7, "b": 0.3}, {"a": 0.7123, "b": 0.3, "c": 0.1234567}])
def test_a_seek_in_a_billion_sequences_is_quick(weights: dict[str, float]):
    order = LaneOrder(dict.fromkeys(weights, 10**9), weights, 0, lanes=512)
    tries = []
    for k in range(7):
        start = time.process_time()
        order(np.arange(5 * 10**8 + k, 5 * 10**8 + k + 4096))
        tries.append(time.process_time() - start)
    print(f"4096 places in the middle of 1e9, 512 lanes: {1e3 * min(tries):.2f} ms")
    assert min(tries) < 0.005
