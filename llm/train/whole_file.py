"""Small files that are there whole or not at all."""

from pathlib import Path


def write_text(path: Path, text: str) -> None:
    """Replaces the file at once."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.replace(path)
