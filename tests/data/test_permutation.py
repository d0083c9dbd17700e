"""Permutations by index: a bijection of every size, undone by its inverse, and as good as random to the eye of a statistician."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.data.permutation import GOLDEN, MAX_SIZE, epoch_keys, permute, source_key, unpermute

KEYS = st.integers(0, 2**64 - 1)


def test_every_size_up_to_2000_is_a_bijection():
    """All sizes in one call: each index with the size that it belongs to."""
    sizes = np.arange(1, 2001)
    size = np.repeat(sizes, sizes)
    index = np.concatenate([np.arange(n) for n in sizes])
    image = permute(index, size, GOLDEN)
    # sorted within each size, the images are the indices again
    assert np.array_equal(image[np.lexsort((image, size))], index)
    assert np.array_equal(unpermute(image, size, GOLDEN), index)


@given(size=st.integers(1, 3000), key=KEYS)
def test_a_permutation_is_a_bijection(size: int, key: int):
    assert np.array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


@given(data=st.data(), size=st.one_of(st.just(10**9), st.integers(1, MAX_SIZE), st.just(MAX_SIZE)), key=KEYS)
def test_a_sample_of_any_size_stays_inside_and_comes_back(data: st.DataObject, size: int, key: int):
    index = np.unique(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=50)))
    image = permute(index, size, key)
    assert ((image >= 0) & (image < size)).all()
    assert len(np.unique(image)) == len(index)
    assert np.array_equal(unpermute(image, size, key), index)
    assert np.array_equal(permute(unpermute(index, size, key), size, key), index)


def test_a_million_of_a_billion_are_different():
    index = np.arange(5 * 10**8, 5 * 10**8 + 10**6)
    image = permute(index, 10**9, 7)
    assert len(np.unique(image)) == len(index)
    assert np.array_equal(unpermute(image, 10**9, 7), index)


@given(data=st.data())
def test_an_index_alone_is_what_it_is_in_a_block(data: st.DataObject):
    sizes = np.array(data.draw(st.lists(st.integers(1, 10**6), min_size=1, max_size=20)))
    keys = np.array(data.draw(st.lists(KEYS, min_size=len(sizes), max_size=len(sizes))), dtype=np.uint64)
    index = np.array([data.draw(st.integers(0, int(size) - 1)) for size in sizes])
    block = permute(index, sizes, keys)
    assert block.tolist() == [int(permute(index[k : k + 1], int(sizes[k]), int(keys[k]))[0]) for k in range(len(sizes))]


@pytest.mark.parametrize("size", range(2, 17))
def test_tiny_permutations_are_even_within_a_tenth(size: int):
    keys = np.random.default_rng(0).integers(0, 2**63, 100_000).astype(np.uint64)
    for index in range(size):
        counts = np.bincount(permute(np.full(len(keys), index), size, keys), minlength=size)
        assert np.abs(counts * size / len(keys) - 1).max() < 0.1


@pytest.mark.parametrize("size", [17, 33, 64, 100, 1025])
def test_over_keys_every_index_goes_everywhere_alike(size: int):
    keys = np.random.default_rng(0).integers(0, 2**63, 40_000).astype(np.uint64)
    due = len(keys) / size
    for index in {0, 1, size // 2, size - 1}:
        counts = np.bincount(permute(np.full(len(keys), index), size, keys), minlength=size)
        chi_square = ((counts - due) ** 2 / due).sum()
        # mean and variance of chi-square with size - 1 degrees of freedom
        assert chi_square < size - 1 + 5 * np.sqrt(2 * (size - 1))


@pytest.mark.parametrize("size", [17, 29, 64])
def test_over_keys_neighbours_go_to_any_two_places_alike(size: int):
    keys = np.random.default_rng(1).integers(0, 2**63, 200_000).astype(np.uint64)
    a, b = (permute(np.full(len(keys), index), size, keys) for index in (0, 1))
    pairs = np.bincount(a * size + b, minlength=size * size).reshape(size, size)
    assert not pairs.diagonal().any()
    counts, freedom = pairs[~np.eye(size, dtype=bool)], size * (size - 1) - 1
    due = len(keys) / (freedom + 1)
    assert ((counts - due) ** 2 / due).sum() < freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("size", [10**4 + 7, 10**6, 10**9, 10**12])
def test_a_stretch_of_an_epoch_is_spread_evenly(size: int):
    n, bins = 10_000, 64
    image = permute(size // 3 + np.arange(n), size, 3) if size > 2 * n else permute(np.arange(n), size, 3)
    counts = np.bincount(image * bins // size, minlength=bins)
    assert ((counts - n / bins) ** 2 / (n / bins)).sum() < bins - 1 + 5 * np.sqrt(2 * (bins - 1))


@pytest.mark.parametrize("apart", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("size", [65_536, 100_000, 10**9])
def test_neighbours_go_to_unrelated_places(size: int, apart: int):
    n = 60_000
    image = permute(np.arange(n + apart), size, 11).astype(np.float64)
    assert abs(np.corrcoef(image[:-apart], image[apart:])[0, 1]) < 5 / np.sqrt(n)
    # the mean distance of two independent places is a third
    assert np.mean(np.abs(image[apart:] - image[:-apart])) == pytest.approx(size / 3, rel=0.02)


def test_epochs_seeds_and_sources_are_unrelated():
    n = 50_000
    keys = [int(epoch_keys(source_key(seed, name), epoch)[0]) for seed in (0, 1) for name in "ab" for epoch in (0, 1)]
    images = [permute(np.arange(n), n, key).astype(np.float64) for key in keys]
    related = np.corrcoef(images) - np.eye(len(images))
    assert np.abs(related).max() < 5 / np.sqrt(n)
    # places that two epochs share: one on average, as between random permutations
    assert all((images[a] == images[b]).sum() < 12 for a in range(len(images)) for b in range(a))


def test_an_index_outside_is_refused():
    for index, size in ((5, 5), (-1, 5), (0, MAX_SIZE + 1)):
        with pytest.raises(AssertionError, match="outside of its permutation"):
            permute(np.array([index]), size, 1)


def test_a_block_in_the_middle_of_a_billion_is_quick():
    index = np.arange(5 * 10**8, 5 * 10**8 + 4096)
    tries = []
    for key in range(7):
        start = time.perf_counter()
        permute(index, 10**9, key)
        tries.append(time.perf_counter() - start)
    print(f"4096 indices in the middle of 1e9: {1e3 * min(tries):.2f} ms")
    assert min(tries) < 0.005
