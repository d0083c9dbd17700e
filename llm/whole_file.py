"""Small files that are there whole or not at all."""

import os
from pathlib import Path


def write_text(path: Path, text: str, sync: bool = False) -> None:
    """`write_bytes` of UTF-8."""
    write_bytes(path, text.encode(), sync)


def write_bytes(path: Path, content: bytes, sync: bool = True) -> None:
    """Replaces the file at once. sync: its content is on the disk before its name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            if sync:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
