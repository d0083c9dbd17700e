"""The mixture of sources: within one of its due at every prefix, any draw alone, epochs counted."""

import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.mixture import MAX_EPOCHS, MAX_PERIOD, Mixture, dealt, repetitions
from llm.errors import ConfigError


def mixture_of(weights: list) -> Mixture:
    return Mixture({f"s{k}": weight for k, weight in enumerate(weights)})


def largest_error(mixture: Mixture, n: int) -> float:
    """The largest |count - i weight| over sources and prefixes of n draws, in integers times 1 / period."""
    source, _ = mixture(np.arange(n))
    i = np.arange(1, n + 1)
    return max(
        int(np.abs((source == s).cumsum() * mixture.period - i * share).max()) for s, share in enumerate(mixture.shares)
    ) / float(mixture.period)


WEIGHTS = st.one_of(
    st.lists(st.integers(1, 40), min_size=1, max_size=10),
    st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=6),
    st.lists(st.fractions(Fraction(1, 97), 1000, max_denominator=97), min_size=1, max_size=5),
)


@settings(max_examples=50, deadline=None)
@given(weights=WEIGHTS)
def test_counts_stay_within_one_of_their_due_at_every_prefix(weights: list):
    mixture = mixture_of(weights)
    assert largest_error(mixture, mixture.period + 3) < 1


@settings(max_examples=50, deadline=None)
@given(weights=WEIGHTS, i=st.integers(0, 10**12))
def test_any_prefix_is_counted_without_replaying_it(weights: list, i: int):
    mixture = mixture_of(weights)
    source, before = mixture(np.arange(i, i + 50))
    counts = mixture.counts(i)
    assert counts.sum() == i
    assert all(abs(int(count) - i * weight) < 1 for count, weight in zip(counts, mixture.weights.values(), strict=True))
    for s, b in zip(source, before, strict=True):
        assert b == counts[s]
        counts[s] += 1
    assert np.array_equal(counts, mixture.counts(i + 50))


@given(weights=st.lists(st.integers(1, 50), min_size=1, max_size=6))
def test_weights_with_a_short_period_are_exact(weights: list[int]):
    mixture = mixture_of(weights)
    assert list(mixture.weights.values()) == [Fraction(weight, sum(weights)) for weight in weights]


@settings(max_examples=30, deadline=None)
@given(weights=st.lists(st.floats(1e-9, 1e3), min_size=2, max_size=8))
def test_awkward_weights_are_rounded_by_less_than_the_law_says(weights: list[float]):
    mixture = mixture_of(weights)
    assert mixture.period <= MAX_PERIOD
    exact = [Fraction(repr(weight)) for weight in weights]
    for asked, used in zip(exact, mixture.weights.values(), strict=True):
        assert abs(asked / sum(exact) - used) < Fraction(len(weights), MAX_PERIOD)
        assert used >= Fraction(1, MAX_PERIOD)


def test_decimals_count_as_written_and_units_do_not_matter():
    assert mixture_of([0.7, 0.2, 0.1]).shares.tolist() == [7, 2, 1]
    assert mixture_of([70, 20.0, Fraction(10)]).shares.tolist() == [7, 2, 1]
    assert mixture_of([Fraction(1, 3), Fraction(2, 3)]).shares.tolist() == [1, 2]
    # 0.7 and 0.3 are a little less than they say, which would decide this tie
    assert dealt([0.7, 0.3], 7) == dealt([7, 3], 7) == [5, 2]


@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4), data=st.data())
def test_an_epoch_is_every_sequence_once(sizes: list[int], data: st.DataObject):
    weights = data.draw(st.lists(st.integers(1, 9), min_size=len(sizes), max_size=len(sizes)))
    mixture = mixture_of(weights)
    by_name = dict(zip(mixture.names, sizes, strict=True))
    n = 4 * max(sizes) * mixture.period
    draws = mixture.draws(np.arange(n), by_name)
    for s, size in enumerate(sizes):
        here = draws.source == s
        assert np.array_equal(draws.position[here], np.arange(here.sum()) % size)
        assert np.array_equal(draws.epoch[here], np.arange(here.sum()) // size)
        assert mixture.epochs(n, by_name)[f"s{s}"] == pytest.approx(here.sum() / size)


def test_a_source_that_is_repeated_too_often_is_named():
    mixture = Mixture({"prose": 0.7, "code": 0.3})
    sizes = {"prose": 1000, "code": 50}

    def said(rows: int, most: float = MAX_EPOCHS) -> list[str]:
        return repetitions(mixture.epochs(rows, sizes), rows, mixture.weights, most)

    assert said(600) == []
    (warning,) = said(1000)
    assert warning == (
        "source 'code' is read 6.0 times in 1000 sequences; past 4 epochs repeated text teaches little: "
        "lower its weight (0.3), train on fewer sequences, or add text"
    )
    assert said(1000, 6) == []


@pytest.mark.parametrize("weight", [0, -1.0, float("nan"), float("inf")])
def test_weights_that_mean_nothing_are_refused(weight: float):
    with pytest.raises(ConfigError, match=r"weight of source 'b' \(.*\) must be positive and finite"):
        Mixture({"a": 1.0, "b": weight})


def test_no_source_is_refused():
    with pytest.raises(ConfigError, match=r"sources \(0\) must number 1 to 65536"):
        Mixture({})


def test_many_sources_are_fine():
    mixture = mixture_of([1.0 + 1 / (k + 3) for k in range(300)])
    assert largest_error(mixture, mixture.period) < 1


def test_a_seek_is_quick():
    mixture = mixture_of([0.7123456789, 0.2, 0.1])
    tries = []
    for k in range(7):
        start = time.perf_counter()
        mixture(np.arange(10**12 + k, 10**12 + k + 4096))
        mixture.counts(10**12 + k)
        tries.append(time.perf_counter() - start)
    print(f"4096 draws and all counts at 1e12: {1e3 * min(tries):.2f} ms")
    assert min(tries) < 0.005
