"""Where a dataset may be written."""

import re
from pathlib import Path

from llm.data.manifest import NAME
from llm.errors import DataError

# what a writer that was cut short may have left
LEFT = re.compile(r"shard-\d+\.(tar|idx)|tokenizer\.json|CARD\.md|\..*")


def check_place(out: Path) -> None:
    """Raises DataError unless `out` can be made, is empty, or holds an interrupted dataset."""
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise DataError(f"out ({out}) cannot be made: {there} is a file; choose another --out")
    if (out / NAME).exists():
        raise DataError(f"out ({out}) holds a dataset already; choose another --out or delete that one")
    foreign = sorted(path.name for path in there.iterdir() if not LEFT.fullmatch(path.name)) if there == out else []
    if foreign:
        raise DataError(f"out ({out}) holds other files ({foreign[0]}); choose another --out, or an empty folder")
