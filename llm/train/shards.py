"""Slices of tensors in safetensors files: written by as many ranks as there are, read by any others.

Each file holds contiguous slices of flattened tensors. Its header's metadata say which: `slices` is JSON, {key: [start, shape of
the whole]}; `scalars`, {parameter: {name: number}}. A file without `slices` holds whole tensors, as any other safetensors file.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

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


class Wanted(NamedTuple):
    """`target` `[n]`, of any dtype and device, is to become elements `start` to `start + n` of a tensor."""

    key: str
    start: int
    target: Tensor


@torch.no_grad()
def fill(pieces: Pieces, wanted: Iterable[Wanted]) -> None:
    """Copy the elements out of the files that hold them: one after the other, mapped, so that memory is not needed for them."""
    copies: dict[str, list[tuple[str, slice, Tensor]]] = {}
    for key, start, target in wanted:
        for first, last, name in pieces.pieces[key]:
            low, high = max(start, first), min(start + target.numel(), last)
            if low < high:
                part = target[low - start : high - start]
                copies.setdefault(name, []).append((key, slice(low - first, high - first), part))
    for name, parts in copies.items():
        with safe_open(pieces.folder / name, "pt") as file:
            for key, elements, part in parts:
                part.copy_(file.get_tensor(key).view(-1)[elements])


def weights_of(held: Iterable[Fragment]) -> list[Wanted]:
    return [Wanted(part.name, part.start, part.weight) for part in held]


def states_of(held: Iterable[Fragment]) -> list[Wanted]:
    return [Wanted(f"{key}/{part.name}", part.start, value) for part in held for key, value in part.state.items()]


def same_shapes(pieces: Pieces, wanted: Mapping[str, tuple[int, ...]]) -> str | None:
    """The first tensor that is missing, too many or of another shape, in words; None: they fit."""
    for name in [*wanted, *pieces.shapes]:
        here, there = pieces.shapes.get(name), wanted.get(name)
        if here is None or there is None:
            return f"{name} {list(here or there or ())} is in {'the model' if here is None else pieces.folder} only"
        if here != there:
            return f"{name} is {list(here)} there and {list(there)} in the model"
    return None
