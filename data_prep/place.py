"""Where a dataset may be written."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from data_prep.stages.work import WORK
from llm.data.manifest import NAME, TOKENIZER
from llm.errors import ConfigError, DataError

# what a writer that was cut short may have left
LEFT = re.compile(r"(shard|index)-\d+\.tar|tokenizer\.json|CARD\.md|prepared\.json|report")


def check_new(out: Path, inputs: Iterable[Path] = ()) -> None:
    """`check_place` for commands that never replace a dataset; `out` may be none yet."""
    check_place(out, inputs, "--out")
    if (out / NAME).exists():
        raise DataError(f"out ({out}) holds a dataset already; choose another --out or delete that one")


def check_place(out: Path, inputs: Iterable[Path] = (), option: str = "out=...") -> None:
    """Raises DataError unless `out` can be made, is empty, or holds a dataset or an interrupted one.

    Args:
        inputs: files that may be there all the same; none of them can have the name of one that is written.
    """
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        law = "is not writable" if there.is_dir() else "is a file"
        raise DataError(f"out ({out}) cannot be made: {there} {law}; choose another {option}")
    if there != out or (out / NAME).exists():
        return
    below = {path.resolve().relative_to(out.resolve()) for path in inputs if path.resolve().is_relative_to(out.resolve())}
    names = {path.name for path in out.iterdir()}
    mine = {name for name in names if not name.startswith(".")} - {path.parts[0] for path in below}
    # a conversion that was cut short has left its tokenizer
    left = {name for name in mine if TOKENIZER in names and LEFT.fullmatch(name)}
    # where preparing has begun it was let in: what lies beside a dataset that it replaces does not keep it from going on
    foreign = [] if WORK in names else sorted(mine - left)
    foreign += sorted(str(path) for path in below if LEFT.fullmatch(str(path)))
    if foreign:
        raise DataError(f"out ({out}) holds other files ({foreign[0]}); choose another {option}, or an empty folder")


def check_name(source: str, where: str) -> None:
    """Raises ConfigError unless `source` can be the name of a source."""
    if not re.fullmatch(r"[\w.-]+", source):
        law = "is no name for a source, which opens every document's id"
        raise ConfigError(f"{where} {law}; use letters, digits, `_`, `-` and `.`")
