"""Checkpoints as files: which are there, which are whole, and how one comes into being so that a kill never costs the previous one.

A checkpoint is written under a temporary name, closed by `files.json` (size and xxh3 of every file) and renamed; `latest` is
written last. So whatever carries the name `step-N` was complete once, and `damage` tells whether it still is.
"""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import xxhash

from llm.train.run_folder import write_text

FILES = "files.json"
LATEST = "latest"
WEIGHTS = "model.safetensors"
PROGRESS = "progress.json"
CONFIG = "config.yaml"
TOKENIZER = "tokenizer.json"
BLOCK = 1 << 22


def name_of(step: int) -> str:
    return f"step-{step}"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def temporary_of(folder: Path, step: int) -> Path:
    return folder / f".{name_of(step)}.tmp"


def checkpoints(folder: Path) -> list[Path]:
    """All that carry a checkpoint's name, newest first."""
    found = [path for path in folder.glob("step-*") if path.is_dir() and path.name.removeprefix("step-").isdigit()]
    return sorted(found, key=step_of, reverse=True)


def content(folder: Path) -> list[str]:
    """Relative paths of the files that `files.json` covers, in one order on every rank."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file() and path.name != FILES)


def seal(folder: Path, names: Iterable[str]) -> dict[str, list]:
    """Name -> [size, xxh3] of these files, once they are on the disk."""
    sealed = {}
    for name in names:
        descriptor = os.open(folder / name, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sealed[name] = [(folder / name).stat().st_size, digest(folder / name)]
    return sealed


def digest(path: Path) -> str:
    """xxh3 of a file's content."""
    hasher = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            hasher.update(block)
    return hasher.hexdigest()


def read_seal(checkpoint: Path) -> dict[str, list] | None:
    """What `files.json` says, or None when it is missing or unreadable."""
    try:
        sealed = json.loads((checkpoint / FILES).read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(sealed, dict) or not all(isinstance(entry, list) and len(entry) == 2 for entry in sealed.values()):
        return None
    return sealed or None


def damage(checkpoint: Path, names: Iterable[str] | None = None) -> str | None:
    """What is wrong with the named files (all of them by default), in words; None: nothing."""
    sealed = read_seal(checkpoint)
    if sealed is None:
        return f"{FILES} is missing or damaged"
    for name in sealed if names is None else names:
        if name not in sealed:
            return f"{FILES} does not name {name}"
        size, hash_ = sealed[name]
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size} bytes instead of {size}"
        if digest(path) != hash_:
            return f"the content of {name} has changed"
    return None


def publish(temporary: Path, final: Path, sealed: dict[str, list]) -> None:
    """Close a written checkpoint and give it its name, then point `latest` to it."""
    write_text(temporary / FILES, json.dumps(sealed, indent=1))
    sync_folder(temporary)
    discard(final)
    temporary.rename(final)
    sync_folder(final.parent)
    write_text(final.parent / LATEST, final.name + "\n")
    sync_folder(final.parent)


def sync_folder(folder: Path) -> None:
    """Names in a folder, on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def discard(checkpoint: Path) -> None:
    """Take a checkpoint's name away first, so that a kill half-way leaves nothing that looks like one."""
    if checkpoint.exists():
        doomed = checkpoint.with_name(f".{checkpoint.name}.old")
        shutil.rmtree(doomed, ignore_errors=True)
        checkpoint.rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def keep_newest(folder: Path, count: int) -> None:
    """Remove all but the newest `count`, and what interrupted writers left."""
    for old in checkpoints(folder)[count:]:
        discard(old)
    for leftover in (*folder.glob(".step-*.tmp"), *folder.glob(".step-*.old")):
        shutil.rmtree(leftover, ignore_errors=True)
