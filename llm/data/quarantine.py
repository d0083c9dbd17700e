"""Windows of training rows that are never read: the order of the others stays as it is.

The rows that are read are counted from 0, in their order: `rows(n)` is the n-th of them, `read_before(i)` how many of them come
before row i. So a run with a quarantine takes the rows that it would take of a stream which never had the windows.
"""

from collections.abc import Iterable

import numpy as np


class Quarantine:
    """windows: rows [low, high) each, in any order; they may overlap. Kept apart, sorted and joined where they touch."""

    def __init__(self, windows: Iterable[tuple[int, int]] = ()):
        joined: list[list[int]] = []
        for low, high in sorted(windows):
            assert 0 <= low < high, f"rows [{low}, {high})"
            if joined and low <= joined[-1][1]:
                joined[-1][1] = max(joined[-1][1], high)
            else:
                joined.append([low, high])
        self._low, self._high = np.array(joined, dtype=np.int64).reshape(-1, 2).T
        # rows of the first k windows
        self._left_out = np.concatenate([[0], np.cumsum(self._high - self._low)])

    def __len__(self) -> int:
        """Rows that are left out."""
        return int(self._left_out[-1])

    def rows(self, n: np.ndarray) -> np.ndarray:
        """int64: the n-th rows of those that are read."""
        return n + self._left_out[np.searchsorted(self._low - self._left_out[:-1], n, side="right")]

    def read_before(self, row: int) -> int:
        """How many rows before this one are read."""
        return row - int((np.minimum(self._high, row) - np.minimum(self._low, row)).sum())

    def holds(self, rows: np.ndarray) -> np.ndarray:
        """bool: whether each row is left out."""
        return np.searchsorted(self._low, rows, side="right") > np.searchsorted(self._high, rows, side="right")
