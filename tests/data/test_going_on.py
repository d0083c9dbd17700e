"""Orders that go on where another ended: with other weights, another batch, or after sequences that were cut in another way."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data import DataConfig, Manifest, TokenStream, cut_of
from llm.data.lanes import LEAST_PER_LANE, LaneOrder, Places

SIZES = {"small": 50, "a": LEAST_PER_LANE * 4 + 3, "b": LEAST_PER_LANE * 4 + 1}


def orders(weights: Sequence[Sequence[int]], rows: Sequence[int], lanes: int) -> list[tuple[LaneOrder, Places]]:
    """One order after the other, each with its places, from its position 0 on."""
    found, drawn = [], {}
    for given_weights, count in zip(weights, rows, strict=True):
        named = {name: weight for name, weight in zip(SIZES, given_weights, strict=True) if weight}
        order = LaneOrder({name: SIZES[name] for name in named}, named, 0, lanes, drawn)
        found.append((order, order(np.arange(count))))
        drawn = order.drawn(count)
    return found


WEIGHTS = st.tuples(*[st.integers(0, 5)] * 3).filter(any)


@settings(max_examples=30, deadline=None)
@given(
    phases=st.lists(st.tuples(WEIGHTS, st.integers(1, 1500)), min_size=2, max_size=4),
    lanes=st.sampled_from([1, 2, 4]),
)
def test_nothing_comes_again_before_its_epoch_is_over(phases: list[tuple], lanes: int):
    """As if replayed: the n-th draw of a source's lane, in all orders, is of epoch n // size; no epoch draws a sequence twice."""
    weights, rows = zip(*phases, strict=True)
    seen: defaultdict[tuple, list[tuple[int, int]]] = defaultdict(list)
    for order, places in orders(weights, rows, lanes):
        names = order.mixture.names
        for source, lane, epoch, sequence in zip(*(x.tolist() for x in places), strict=True):
            seen[names[source], lane if order.has_lanes[source] else 0].append((epoch, sequence))
    for (name, lane), draws in seen.items():
        size, cut = SIZES[name], lanes if SIZES[name] >= LEAST_PER_LANE * lanes and lanes > 1 else 1
        first, last = lane * size // cut, (lane + 1) * size // cut
        assert [epoch for epoch, _ in draws] == [n // (last - first) for n in range(len(draws))]
        assert all(first <= sequence < last for _, sequence in draws)
        assert len(set(draws)) == len(draws)


@given(weights=WEIGHTS, count=st.integers(0, 3000), lanes=st.sampled_from([1, 4]))
@settings(max_examples=30, deadline=None)
def test_draws_up_to_a_position_are_counted_without_replaying_them(weights: tuple, count: int, lanes: int):
    ((order, places),) = orders([weights], [count], lanes)
    for s, name in enumerate(order.mixture.names):
        here = places.lane[places.source == s]
        counted = np.bincount(here, minlength=lanes) if order.has_lanes[s] else [len(here)] + [0] * (lanes - 1)
        assert order.drawn(count)[name].tolist() == list(counted)
        assert order.epochs(count)[name] == pytest.approx(len(here) / SIZES[name])


def labels(stream: TokenStream, low: int, high: int) -> list[list[int]]:
    return stream.rows(np.arange(low, high)).labels.tolist()


@pytest.mark.parametrize("packing", ["concat", "bestfit", "contiguous"])
def test_with_the_same_settings_it_is_the_same_stream(dataset: Manifest, packing: str):
    config = DataConfig("", 16, packing)  # type: ignore[arg-type]
    whole = TokenStream(dataset, "train", config, 3, 8)
    first, end = whole, 0
    for end in (24, 32, 80):
        second = TokenStream(dataset, "train", config, 3, 8, end, (first, end))
        assert second.identity() == whole.identity()
        assert labels(second, end, end + 40) == labels(whole, end, end + 40)
        indices = np.arange(end, end + 40)
        assert second.lanes(indices).tolist() == whole.lanes(indices).tolist()
        first = second


def test_other_weights_leave_nothing_out_and_repeat_nothing(dataset: Manifest):
    """Two mixtures, and another cut between them; together an epoch of the source that both read."""
    config = DataConfig("", 16, lanes=1)
    first = TokenStream(dataset, "train", replace(config, mixture={"prose": 1, "code": 1}), 0)
    size = len(TokenStream(dataset, "train", replace(config, mixture={"prose": 1}), 0))
    second = TokenStream(dataset, "train", replace(config, mixture={"prose": 2}), 0, begin=140, after=(first, 40))
    assert cut_of(first.config, 8) == cut_of(second.config, 4)
    prose = [place.sequence for place in first.order.places(np.arange(40)) if place.source == 1]
    rest = [place.sequence for place in second.order.places(np.arange(140, 140 + size - len(prose)))]
    assert len(prose) == 20
    assert sorted(prose + rest) == list(range(size))
    assert second.repetitions(140 + 4 * size - 20) == []
    assert "is read 4.0 times" in second.repetitions(140 + 4 * size - 19)[0]


def test_what_is_cut_alike():
    config = DataConfig("x", 16)
    assert cut_of(config, 8) == cut_of(replace(config, mixture={"a": 1}), 4)
    contiguous = replace(config, packing="contiguous")
    alike = {cut_of(config, 8), cut_of(replace(config, sequence_length=32), 8), cut_of(replace(config, packing="bestfit"), 8)}
    assert len(alike) == 3
    assert cut_of(contiguous, 8) != cut_of(contiguous, 4)
    assert cut_of(contiguous, 8) != cut_of(replace(contiguous, mixture={"a": 1}), 8)
