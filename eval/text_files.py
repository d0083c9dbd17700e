"""Documents from local files: a file is a document; of a .jsonl file, each line is one."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llm.errors import DataError


@dataclass(frozen=True)
class FileText:
    """source: the folder below the one that was named, else the file's name without its ending."""

    text: str
    source: str


def read_files(path: str, field: str) -> list[FileText]:
    """The documents of a file or folder, in the order of their names. Raises DataError."""
    root = Path(path)
    if not root.exists():
        raise DataError(f"text ({path}) does not exist; name a text file, a .jsonl file or a folder of them")
    files = sorted(p for p in root.rglob("*") if p.is_file() and not p.name.startswith(".")) if root.is_dir() else [root]
    if not files:
        raise DataError(f"text ({path}) is a folder without files; name one that holds text")
    return [document for file in files for document in _documents(file, _source(file, root), field)]


def _source(file: Path, root: Path) -> str:
    inside = file.relative_to(root).parts
    return inside[0] if len(inside) > 1 else file.stem


def _documents(file: Path, source: str, field: str) -> Iterator[FileText]:
    try:
        text = file.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} is no text in UTF-8 ({error}); convert it or leave it out") from None
    if file.suffix != ".jsonl":
        yield FileText(text, source)
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield FileText(_field(line, field, f"{file}, line {number}"), source)


def _field(line: str, field: str, where: str) -> str:
    try:
        value = json.loads(line)[field]
    except (ValueError, KeyError, TypeError):
        value = None
    if not isinstance(value, str):
        raise DataError(f"{where} is no JSON object with text under {field!r}; correct the line, or name the key with field=KEY")
    return value
