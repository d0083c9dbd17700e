"""Slices of tensors in safetensors files: written by as many ranks as there are, read by any others.

Each file holds contiguous slices of flattened tensors. Its header's metadata say which: `slices` is JSON, {key: [start, shape of
the whole]}; `scalars`, {parameter: {name: number}}. A file without `slices` holds whole tensors, as any other safetensors file.
"""

import json
import math
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from llm.errors import CheckpointError
from llm.train.fragments import Fragment, Scalars


class Shard(NamedTuple):
    """What one file holds."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def weight_shard(held: Iterable[Fragment]) -> Shard:
    """Keys are the parameters' names."""
    slices = {part.name: (part.start, part.shape) for part in held}
    return Shard({part.name: part.weight for part in held}, {"slices": json.dumps(slices)})


def state_shard(held: Iterable[Fragment]) -> Shard:
    """Keys are `state/parameter`."""
    tensors = {f"{key}/{part.name}": value for part in held for key, value in part.state.items()}
    slices = {f"{key}/{part.name}": (part.start, part.shape) for part in held for key in part.state}
    scalars = {part.name: part.scalars for part in held}
    return Shard(tensors, {"slices": json.dumps(slices), "scalars": json.dumps(scalars)})


class Piece(NamedTuple):
    """Elements `start` to `stop` of a flattened tensor, in this file."""

    start: int
    stop: int
    file: str


@dataclass(frozen=True)
class Pieces:
    """Where the elements of every tensor lie in the files of a folder. shapes: of the whole tensors."""

    folder: Path
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    pieces: dict[str, list[Piece]] = field(default_factory=dict)
    scalars: dict[str, Scalars] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path, files: Iterable[str]) -> "Pieces":
        """From the headers of these files."""
        found = cls(folder)
        for name in files:
            with safe_open(folder / name, "pt") as file:
                metadata = file.metadata() or {}
                slices = json.loads(metadata.get("slices", "{}"))
                found.scalars.update(json.loads(metadata.get("scalars", "{}")))
                for key in file.keys():  # noqa: SIM118 - no dict
                    shape = file.get_slice(key).get_shape()
                    start, whole = slices.get(key, (0, shape))
                    found.shapes[key] = tuple(whole)
                    found.pieces.setdefault(key, []).append(Piece(start, start + math.prod(shape), name))
        return found

    @classmethod
    def merged(cls, parts: list["Pieces"]) -> "Pieces":
        """Of the files of all parts. Raises CheckpointError unless every element lies in one of them."""
        whole = cls(parts[0].folder)
        for part in parts:
            whole.shapes.update(part.shapes)
            whole.scalars.update(part.scalars)
            for key, pieces in part.pieces.items():
                whole.pieces.setdefault(key, []).extend(pieces)
        for key, pieces in whole.pieces.items():
            pieces.sort()
            reached = 0
            for start, stop, _ in pieces:
                reached = stop if start == reached else -1
            if reached != math.prod(whole.shapes[key]):
                raise CheckpointError(
                    f"the files of {whole.folder} do not hold {key} {list(whole.shapes[key])} once and whole; "
                    "take another checkpoint of the run"
                )
        return whole

    def state_keys(self) -> dict[str, set[str]]:
        """Parameter -> the optimizer's keys, of `state/parameter`."""
        found: dict[str, set[str]] = {}
        for key in self.pieces:
            state, _, name = key.partition("/")
            found.setdefault(name, set()).add(state)
        return found


class Reader:
    """Copies elements out of the files, which it maps: host memory holds what is being copied, in the page cache alone."""

    def __init__(self, pieces: Pieces):
        self.pieces = pieces
        self._files: dict[str, Any] = {}
        self._stack = ExitStack()

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self._files.clear()
        self._stack.close()

    @torch.no_grad()
    def fill(self, key: str, start: int, target: Tensor) -> None:
        """`target` `[n]`, of any dtype and device, becomes elements `start` to `start + n`."""
        stop = start + target.numel()
        for piece in self.pieces.pieces[key]:
            low, high = max(start, piece.start), min(stop, piece.stop)
            if low < high:
                part = self._file(piece.file).get_tensor(key).view(-1)[low - piece.start : high - piece.start]
                target[low - start : high - start].copy_(part)

    def _file(self, name: str) -> Any:
        if name not in self._files:
            self._files[name] = self._stack.enter_context(safe_open(self.pieces.folder / name, "pt"))
        return self._files[name]


def fill_weights(held: Iterable[Fragment], pieces: Pieces) -> None:
    with Reader(pieces) as reader:
        for part in held:
            reader.fill(part.name, part.start, part.weight)


def fill_states(held: Iterable[Fragment], pieces: Pieces) -> None:
    with Reader(pieces) as reader:
        for part in held:
            for key, value in part.state.items():
                reader.fill(f"{key}/{part.name}", part.start, value)


def same_shapes(pieces: Pieces, wanted: Mapping[str, tuple[int, ...]]) -> str | None:
    """The first tensor that is missing, too many or of another shape, in words; None: they fit."""
    for name in [*wanted, *pieces.shapes]:
        here, there = pieces.shapes.get(name), wanted.get(name)
        if here is None or there is None:
            return f"{name} {list(here or there or ())} is in {'the model' if here is None else pieces.folder} only"
        if here != there:
            return f"{name} is {list(here)} there and {list(there)} in the model"
    return None
