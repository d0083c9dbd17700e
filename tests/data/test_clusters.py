"""Clusters of documents: what pairs connect, and records that meet by key whatever the number of files."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.clusters import Forest, KeyFiles


@given(pairs=st.lists(st.tuples(st.integers(0, 19), st.integers(0, 19))), cuts=st.integers(1, 4))
def test_the_forest_joins_what_pairs_connect(pairs: list[tuple[int, int]], cuts: int):
    forest, expected = Forest(20), {k: {k} for k in range(20)}
    for part in range(cuts):
        chosen = pairs[part::cuts]
        forest.join(np.array([a for a, _ in chosen], dtype=int), np.array([b for _, b in chosen], dtype=int))
    for a, b in pairs:
        joined = expected[a] | expected[b]
        expected.update(dict.fromkeys(joined, joined))
    clusters = sorted(sorted(cluster) for cluster in set(map(frozenset, expected.values())) if len(cluster) > 1)
    assert [cluster.tolist() for cluster in forest.clusters()] == clusters


def test_long_chains_join_in_few_steps():
    forest, n = Forest(200_000), np.arange(200_000)
    forest.join(n[:-1], n[1:])
    assert [len(cluster) for cluster in forest.clusters()] == [200_000]


@pytest.mark.parametrize("partitions", [1, 2, 7])
def test_records_of_one_key_meet(tmp_path: Path, partitions: int):
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 12, (300, 2)).astype(np.uint64)
    with KeyFiles(tmp_path, partitions) as files:
        for start in range(0, 300, 50):
            files.add(keys[start : start + 50], np.arange(start, start + 50))
    found = {(int(a), int(b)) for first, second in files.pairs() for a, b in zip(first, second, strict=True)}
    lowest: dict[tuple, int] = {}
    for k, key in enumerate(map(tuple, keys.tolist())):
        lowest.setdefault(key, k)
    assert found == {(lowest[key], k) for k, key in enumerate(map(tuple, keys.tolist())) if lowest[key] != k}
    assert not list(tmp_path.iterdir())
