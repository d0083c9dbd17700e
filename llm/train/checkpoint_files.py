"""Checkpoints as files: which are there, which are whole, and how one comes into being so that a kill never costs the previous one.

checkpoints/step-N/  weights/rank-R.safetensors    slices of the float32 weights (llm/train/shards.py)
                     optimizer/rank-R.safetensors  slices of the optimizer's states
                     rng-R.safetensors             each rank's generators
                     carried-R.safetensors         each rank's states, under `contiguous` packing
                     progress.json                 step, tokens, phase, data position, quarantine, bad steps, schedule, versions
                     config.yaml, tokenizer.json, files.json (sizes and hashes of all these)

A checkpoint is written under a temporary name, closed by `files.json` (size and xxh3 of every file) and renamed; `latest` is
written last. So whatever carries the name `step-N` was complete once, and `damage` tells whether it still is.
"""

import json
import os
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path

import xxhash

from llm.whole_file import write_text

FILES = "files.json"
LATEST = "latest"
WEIGHTS = "weights"
OPTIMIZER = "optimizer"
PROGRESS = "progress.json"
CONFIG = "config.yaml"
TOKENIZER = "tokenizer.json"
BLOCK = 1 << 22


def name_of(step: int) -> str:
    return f"step-{step}"


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def weights_of(rank: int) -> str:
    return f"{WEIGHTS}/rank-{rank}.safetensors"


def optimizer_of(rank: int) -> str:
    return f"{OPTIMIZER}/rank-{rank}.safetensors"


def generators_of(rank: int) -> str:
    return f"rng-{rank}.safetensors"


def carried_of(rank: int) -> str:
    return f"carried-{rank}.safetensors"


def temporary_of(folder: Path, step: int) -> Path:
    return folder / f".{name_of(step)}.tmp"


def checkpoints(folder: Path) -> list[Path]:
    """All that carry a checkpoint's name, newest first."""
    found = [path for path in folder.glob("step-*") if path.is_dir() and path.name.removeprefix("step-").isdigit()]
    return sorted(found, key=step_of, reverse=True)


def shards_in(checkpoint: Path, folder: str) -> list[str]:
    """The sealed files of `weights` or `optimizer`, in one order on every rank."""
    return sorted(name for name in read_seal(checkpoint) or {} if name.startswith(f"{folder}/"))


def seal(folder: Path, names: Iterable[str]) -> dict[str, list]:
    """Name -> [size, xxh3] of these files, once they and their names are on the disk."""
    sealed = {}
    for name in names:
        descriptor = os.open(folder / name, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sealed[name] = [(folder / name).stat().st_size, digest(folder / name)]
    for parent in {(folder / name).parent for name in sealed}:
        sync_folder(parent)
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
    if not shards_in(checkpoint, WEIGHTS):
        return f"{FILES} names no {WEIGHTS}/, so it is damaged or of a form that this release does not read"
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
    point(final)
    for later in checkpoints(final.parent):
        # passed over when this start began, as not whole; left there, it would count among the newest that are kept
        if step_of(later) > step_of(final):
            discard(later)


def point(checkpoint: Path) -> None:
    """`latest` names this one."""
    write_text(checkpoint.with_name(LATEST), checkpoint.name + "\n")
    sync_folder(checkpoint.parent)


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


def keep_newest(folder: Path, count: int, every: int, borders: Collection[int] = ()) -> None:
    """Remove all but the newest `count`, those of each `every`-th step (0: of none), and those of `borders`."""
    for old in checkpoints(folder)[count:]:
        if step_of(old) not in borders and (not every or step_of(old) % every):
            discard(old)


def tidy(folder: Path) -> None:
    """Remove what interrupted writers left, and let `latest` name the newest, as one may not have come to it."""
    for leftover in (*folder.glob(".step-*.tmp"), *folder.glob(".step-*.old")):
        shutil.rmtree(leftover, ignore_errors=True)
    found, latest = checkpoints(folder), folder / LATEST
    if found and (not latest.is_file() or latest.read_text().strip() != found[0].name):
        point(found[0])
