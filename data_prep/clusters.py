"""Clusters of documents that share a key, for more keys than memory holds.

Records (128-bit key, document number) go to files by key, so equal keys meet in one file; each file is then sorted in memory by
itself, and documents of equal keys are joined. What stays in memory for all documents is their parent in the forest: 8 bytes each.
"""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Self

import numpy as np

RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("number", "<i8")])


class KeyFiles:
    """`partitions` files of records in `folder`: write with `add`, leave the `with` block, then read `pairs` once."""

    def __init__(self, folder: Path, partitions: int):
        self.paths = [folder / f"keys-{k:03d}" for k in range(partitions)]

    def __enter__(self) -> Self:
        self.files = [path.open("wb", buffering=1 << 14) for path in self.paths]
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self.files:
            file.close()

    def add(self, keys: np.ndarray, numbers: np.ndarray) -> None:
        """keys: [records, 2] uint64. numbers: [records], of their documents."""
        records = np.empty(len(keys), dtype=RECORD)
        records["high"], records["low"], records["number"] = keys[:, 0], keys[:, 1], numbers
        partition = records["high"] % np.uint64(len(self.files))
        order = np.argsort(partition, kind="stable")
        starts = np.searchsorted(partition[order], np.arange(len(self.files) + 1, dtype=np.uint64))
        records = records[order]
        for k, file in enumerate(self.files):
            if starts[k] < starts[k + 1]:
                file.write(records[starts[k] : starts[k + 1]].tobytes())

    def pairs(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Per file, every record but the first of its key: the first one's document, its own. Removes the files as it goes."""
        for path in self.paths:
            records = np.fromfile(path, dtype=RECORD)
            path.unlink()
            records = records[np.lexsort((records["number"], records["low"], records["high"]))]
            first = np.ones(len(records), dtype=bool)
            first[1:] = (records["high"][1:] != records["high"][:-1]) | (records["low"][1:] != records["low"][:-1])
            leader = np.maximum.accumulate(np.where(first, np.arange(len(records)), 0))
            yield records["number"][leader][~first], records["number"][~first]


class Forest:
    """Union-find over the documents 0 .. n-1 for whole arrays of pairs; the root of a cluster is its lowest number."""

    def __init__(self, n: int):
        self.parents = np.arange(n)

    def join(self, a: np.ndarray, b: np.ndarray) -> None:
        """Join a[k] with b[k] for every k: the higher root goes below the lower one, until no pair has two roots."""
        while len(a):
            a, b = self.roots(a), self.roots(b)
            apart = a != b
            a, b = a[apart], b[apart]
            np.minimum.at(self.parents, np.maximum(a, b), np.minimum(a, b))

    def roots(self, numbers: np.ndarray) -> np.ndarray:
        """Halves every path it climbs."""
        while True:
            parents = self.parents[numbers]
            above = self.parents[parents]
            if np.array_equal(parents, above):
                return parents
            self.parents[numbers] = above

    def clusters(self) -> Iterator[np.ndarray]:
        """The documents of each cluster of two or more. Needs 24 bytes per document more for a moment."""
        roots = self.roots(np.arange(len(self.parents)))
        sizes = np.bincount(roots, minlength=len(roots))
        members = np.flatnonzero(sizes[roots] > 1)
        members = members[np.argsort(roots[members], kind="stable")]
        starts = np.flatnonzero(np.diff(roots[members], prepend=-1))
        for start, end in pairwise([*starts, len(members)]):
            yield members[start:end]
