"""Where a dataset may be written."""

import re
from collections.abc import Iterable
from pathlib import Path

from llm.data.manifest import NAME, TOKENIZER
from llm.errors import DataError

# what a writer that was cut short may have left, after the tokenizer, which it writes first
LEFT = re.compile(r"(shard|index)-\d+\.tar|CARD\.md")


def check_place(out: Path, inputs: Iterable[Path] = ()) -> None:
    """Raises DataError unless `out` can be made, is empty, or holds an interrupted dataset.

    Args:
        inputs: files that may be there all the same; none of them can have the name of one that is written.
    """
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise DataError(f"out ({out}) cannot be made: {there} is a file; choose another --out")
    if (out / NAME).exists():
        raise DataError(f"out ({out}) holds a dataset already; choose another --out or delete that one")
    if there != out:
        return
    below = {path.resolve().relative_to(out.resolve()) for path in inputs if path.resolve().is_relative_to(out.resolve())}
    mine = {path.name for path in out.iterdir() if not path.name.startswith(".")} - {path.parts[0] for path in below}
    foreign = sorted(name for name in mine - {TOKENIZER} if TOKENIZER not in mine or not LEFT.fullmatch(name))
    foreign += sorted(str(path) for path in below if LEFT.fullmatch(str(path)))
    if foreign:
        raise DataError(f"out ({out}) holds other files ({foreign[0]}); choose another --out, or an empty folder")
