"""Small files that are there whole or not at all."""

import os
from pathlib import Path


def write_text(path: Path, text: str, sync: bool = False) -> None:
    """Replaces the file at once. sync: its content is on the disk before its name."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        if sync:
            file.flush()
            os.fsync(file.fileno())
    temporary.replace(path)
