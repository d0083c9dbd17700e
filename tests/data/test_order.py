"""The order of training: a bijection per epoch, sources within 1 of their due, nothing remembered."""

import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.data.order import MAX_PERIOD, Blend, Order, permute


def permuted(size: int, key: int) -> np.ndarray:
    return permute(np.arange(size), size, np.full(size, key, dtype=np.uint64))


@given(size=st.integers(1, 3000), key=st.integers(0, 2**64 - 1))
def test_a_permutation_is_a_bijection(size: int, key: int):
    assert np.array_equal(np.sort(permuted(size, key)), np.arange(size))


@pytest.mark.parametrize("size", [2, 5, 16, 100])
def test_over_keys_every_index_goes_everywhere_alike(size: int):
    keys = np.random.default_rng(0).integers(0, 2**63, 20_000).astype(np.uint64)
    for index in {0, 1, size - 1}:
        counts = np.bincount(permute(np.full(len(keys), index), size, keys), minlength=size)
        due = len(keys) / size
        assert np.abs(counts - due).max() < 5 * np.sqrt(due)


def test_neighbours_are_torn_apart():
    image = permuted(100_000, key=7)
    assert np.mean(np.abs(np.diff(image))) == pytest.approx(100_000 / 3, rel=0.05)


@given(weights=st.lists(st.integers(1, 30), min_size=1, max_size=8))
def test_counts_stay_within_one_of_their_due_at_every_prefix(weights: list[int]):
    blend = Blend([float(weight) for weight in weights])
    n = 2 * blend.period + 3
    source, before = blend(np.arange(n))
    for s, weight in enumerate(weights):
        drawn = source == s
        count = drawn.cumsum()
        # exact: |count - i w / W| < 1 in integers
        assert (np.abs(count * sum(weights) - np.arange(1, n + 1) * weight) < sum(weights)).all()
        assert np.array_equal(before[drawn], np.arange(drawn.sum()))


@pytest.mark.parametrize("weights", [[0.7123456789, 0.3], [1.0, 1e-9, 3.3333333], [0.1234567] * 3 + [5.4321]])
def test_awkward_weights_are_rounded_and_stay_within_one(weights: list[float]):
    blend = Blend(weights)
    assert blend.period <= MAX_PERIOD
    assert min(blend.shares) >= 1
    exact = [Fraction(weight) / sum(map(Fraction, weights)) for weight in weights]
    assert all(
        abs(Fraction(share, blend.period) - weight) < Fraction(len(weights), MAX_PERIOD)
        for share, weight in zip(blend.shares, exact, strict=True)
    )
    source, _ = blend(np.arange(blend.period))
    for s, share in enumerate(blend.shares):
        assert (np.abs((source == s).cumsum() * blend.period - np.arange(1, blend.period + 1) * share) < blend.period).all()


def test_decimal_weights_are_exact():
    assert Blend([0.7, 0.2, 0.1]).shares == [7, 2, 1]


@given(seed=st.integers(0, 2**32), windows=st.dictionaries(st.sampled_from("abcd"), st.integers(1, 40), min_size=1))
def test_an_epoch_of_a_source_is_each_of_its_windows_once(seed: int, windows: dict[str, int]):
    order = Order(windows, dict.fromkeys(windows, 1.0), seed)
    draws = order(np.arange(len(windows) * 3 * max(windows.values())))
    for s, n in enumerate(windows.values()):
        for epoch in range(2):
            here = (draws.source == s) & (draws.epoch == epoch)
            assert np.array_equal(np.sort(draws.window[here]), np.arange(n))


def test_seed_source_and_epoch_each_change_the_permutation():
    n = 500

    def windows(seed: int, source: str) -> np.ndarray:
        return Order({source: n}, {source: 1.0}, seed)(np.arange(2 * n)).window

    base = windows(0, "a")
    assert not np.array_equal(base[:n], base[n:])
    assert not np.array_equal(base, windows(1, "a"))
    assert not np.array_equal(base, windows(0, "b"))


@given(data=st.data())
def test_any_index_alone_is_what_it_is_in_a_row(data: st.DataObject):
    order = Order({"a": 37, "b": 1, "c": 900}, {"a": 0.5, "b": 0.1, "c": 2.0}, seed=3)
    whole = order(np.arange(2000))
    i = data.draw(st.lists(st.integers(0, 1999), min_size=1, max_size=9))
    for part, all_of_it in zip(order(np.array(i)), whole, strict=True):
        assert np.array_equal(part, all_of_it[i])


def test_the_order_of_existing_runs_does_not_change():
    """A release that changes these numbers breaks the resuming of every run."""
    draws = Order({"a": 1000, "b": 77}, {"a": 0.7, "b": 0.3}, seed=1)(np.array([0, 1, 2, 3, 4, 10**6, 10**9]))
    assert draws.source.tolist() == [0, 0, 1, 0, 0, 0, 0]
    assert draws.epoch.tolist() == [0, 0, 0, 0, 0, 700, 700000]
    assert draws.window.tolist() == [296, 924, 58, 215, 609, 310, 148]


def test_a_seek_in_a_billion_sequences_is_quick():
    order = Order({"a": 10**9, "b": 10**7}, {"a": 0.7, "b": 0.3}, seed=1)
    order(np.arange(10))
    tries = []
    for k in range(5):
        start = time.perf_counter()
        order(np.arange(5 * 10**8 + k, 5 * 10**8 + k + 64))
        tries.append(time.perf_counter() - start)
    assert min(tries) < 0.005
