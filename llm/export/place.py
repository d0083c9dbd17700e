"""Whether a folder can come into being where the user wants it."""

import os
from pathlib import Path

from llm.errors import CheckpointError


def check_place(out: Path) -> None:
    """Raise CheckpointError unless a folder can be made at `out`."""
    there = next(folder for folder in out.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        law = "is not writable" if there.is_dir() else "is a file"
        raise CheckpointError(f"{out} cannot be made: {there} {law}; choose another folder")
