"""Arrays in binary files, mapped and not read whole."""

from pathlib import Path

import numpy as np

from llm.errors import DataError


def mapped(path: Path, dtype: np.dtype | str, offset: int = 0, count: int | None = None) -> np.ndarray:
    """`count` numbers from byte `offset` of a file, all that follow without one. Raises DataError when they are not there."""
    dtype = np.dtype(dtype)
    left = file_size(path) - offset
    if count is None:
        if left % dtype.itemsize:
            raise DataError(f"{path} ({left} bytes of numbers) must hold whole {dtype.name}; it is truncated or of another type")
        count = left // dtype.itemsize
    if left < count * dtype.itemsize:
        raise DataError(f"{path} ends before byte {offset + count * dtype.itemsize}: it is truncated; copy it again")
    # nothing cannot be mapped
    return np.memmap(path, dtype, "r", offset, (count,)) if count else np.zeros(0, dtype)


def beside(path: Path, suffix: str) -> Path:
    """The file that has this name and more."""
    return Path(f"{path}{suffix}")


def file_size(path: Path) -> int:
    """Raises DataError when the file cannot be read."""
    try:
        with path.open("rb"):
            return path.stat().st_size
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); name a file that is there") from None
