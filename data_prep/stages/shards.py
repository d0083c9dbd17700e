"""Stage 5: shards. Which documents stand in which shard follows from their lengths alone, so any worker can write any shard.

In memory is, per worker, one shard, twice for a moment.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.stages.tokenizer import SPLITS
from data_prep.stages.tokens import lengths
from data_prep.stages.work import Work, load, save
from data_prep.workers import Track, Workers
from llm.data.manifest import Member, Shard
from llm.data.shard import token_dtype
from llm.data.write import shard_path, tokenizer_info, write_shard


class Piece(NamedTuple):
    """Documents [first, last) of a part and split; its tokens [start, stop)."""

    part: int
    first: int
    last: int
    start: int
    stop: int


class Plan(NamedTuple):
    """A shard to be."""

    number: int
    source: str
    split: str
    pieces: list[Piece]


def run(plans: list[Plan], out: Path, work: Work, workers: Workers, track: Track) -> list[Shard]:
    """Write the shards into `out` and remove others. Those that are there are kept where their sha256 is the recorded one."""
    for stale in set(out.glob("shard-*.tar")) - {shard_path(out, each.number) for each in plans}:
        stale.unlink()
    written = workers.in_order(partial(write_planned, out=out, work=work), plans)
    return [_shard(values) for values in track(written, len(plans))]


def plan(sources: Iterable[str], work: Work, shard_tokens: int) -> Iterator[Plan]:
    """The shards in order: by source, by split, then as the documents were read.

    Args:
        sources: in their order. shard_tokens: a shard is closed before it would hold more, unless a single document does.
    """
    number, of_parts = 0, work.sources
    for source in sources:
        for split in SPLITS:
            parts = (part for part, name in enumerate(of_parts) if name == source)
            for pieces in pack(((part, *_tokens(work, part, split)) for part in parts), shard_tokens):
                yield Plan(number, source, split, pieces)
                number += 1


def _tokens(work: Work, part: int, split: str) -> tuple[np.ndarray, int]:
    tokens, _, start = lengths(work, part, split)
    return tokens, start


def pack(parts: Iterable[tuple[int, np.ndarray, int]], shard_tokens: int) -> Iterator[list[Piece]]:
    """The pieces of each shard. parts: number, lengths of the documents, at least 1, and where the first one starts."""
    pieces: list[Piece] = []
    room = shard_tokens
    for part, tokens, start in parts:
        ends, first = np.cumsum(tokens), 0
        while first < len(ends):
            before = int(ends[first - 1]) if first else 0
            last = max(first, int(np.searchsorted(ends, before + room, side="right")))
            if last == first and not pieces:
                # longer than a shard, and so one by itself
                last += 1
            if last > first:
                size = int(ends[last - 1]) - before
                pieces.append(Piece(part, first, last, start + before, start + before + size))
                room -= size
            if last < len(ends):
                yield pieces
                pieces, room = [], shard_tokens
            first = last
    if pieces:
        yield pieces


def write_planned(planned: Plan, out: Path, work: Work) -> dict:
    """The shard's entry in the manifest."""
    record, path = work.shard(planned.number), shard_path(out, planned.number)
    there = load(record)
    if there is not None and _sha256(path) == there["sha256"]:
        return there
    info = tokenizer_info(work.tokenizer.read_bytes())
    width = token_dtype(info.vocabulary).itemsize
    counts, texts = [], []
    for piece in planned.pieces:
        tokens, text_bytes, _ = lengths(work, piece.part, planned.split)
        counts.append(tokens[piece.first : piece.last])
        texts.append(text_bytes[piece.first : piece.last])
    content = b"".join(_read(work, piece, width) for piece in planned.pieces)
    found = asdict(write_shard(path, info, planned.source, planned.split, content, np.concatenate(counts), np.concatenate(texts)))
    save(record, found)
    return found


def _read(work: Work, piece: Piece, width: int) -> bytes:
    with work.tokens(piece.part).open("rb") as file:
        file.seek(piece.start * width)
        return file.read((piece.stop - piece.start) * width)


def _sha256(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _shard(values: dict) -> Shard:
    return Shard(**values | {"members": {name: Member(**member) for name, member in values["members"].items()}})
