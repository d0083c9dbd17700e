"""Arrays in WebDataset tars, and where their numbers lie.

A `.npy` (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html) is a header and then the numbers as they are, and
an uncompressed tar holds members as they are.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from tokenize import TokenError

import numpy as np

from data_prep.convert.ids import Counts
from data_prep.readers.tars import MEMBER, Broken, content_of, members
from llm.data.foreign import DTYPES
from llm.errors import DataError

HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def arrays(tar: Path, extension: str, counts: Counts) -> Iterator[tuple[str, int, np.ndarray]]:
    """(place, byte of its first number, ids) of each sample. counts: gets the samples without the extension.

    Raises:
        DataError: a tar that is compressed, cut short or damaged; a member that is no array of whole numbers in one dimension.
    """
    seen, found = "", True
    with tar.open("rb") as stream:
        try:
            for name, member in members(stream):
                match = MEMBER.fullmatch(name)
                if match is None:
                    counts["members without a key"] += 1
                    continue
                if match[1] != seen:
                    counts[f"samples without .{extension}"] += not found
                    seen, found = match[1], False
                if match[2] == extension:
                    if found:
                        raise DataError(f"{tar}#{seen}: two members end in .{extension}, which is one sample's; give samples keys")
                    found = True
                    yield _array(f"{tar}#{seen}", content_of(stream, member), member.offset_data)
        except Broken as broken:
            raise DataError(f"{tar} is {broken.reason}, or compressed; copy it again, or unpack it: it is read in place") from None
    counts[f"samples without .{extension}"] += not found


def _array(place: str, content: bytes, offset: int) -> tuple[str, int, np.ndarray]:
    header = io.BytesIO(content)
    try:
        shape, _, dtype = HEADERS[np.lib.format.read_magic(header)](header)
    # numpy reads the header as Python: a tokenizer and a parser of it have errors of their own
    except (ValueError, KeyError, TokenError, MemoryError, RecursionError):
        raise DataError(f"{place} is no .npy; name the extension of the arrays of ids") from None
    begin = header.tell()
    if len(shape) != 1 or dtype.str not in DTYPES or begin + shape[0] * dtype.itemsize != len(content):
        raise DataError(
            f"{place} ({dtype.str}, shape {shape}, {len(content)} bytes) must be a one-dimensional array of whole numbers; "
            "name the extension of the ids"
        )
    return place, offset + begin, np.frombuffer(content, dtype, shape[0], begin)
