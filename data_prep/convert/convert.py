"""Foreign documents of ids -> a dataset of ours."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import xxhash

from data_prep.place import check_place
from data_prep.token_bytes import byte_lengths, is_byte_level
from llm.data.manifest import Manifest, Source, write_whole
from llm.data.tokenizer import parse_tokenizer
from llm.data.write import DatasetWriter, tokenizer_info
from llm.errors import ConfigError, DataError

KEPT, EMPTY, CUT = "kept", "empty", "cut at a document token inside"
Counts = Counter[str]


class Reader(Protocol):
    """Documents of foreign files."""

    def documents(self) -> Iterator[tuple[str, np.ndarray]]:
        """(place, ids)."""


@dataclass(frozen=True)
class ConvertConfig:
    """mark: the id at the end or start of foreign documents; -1 is the tokenizer's document token. It is taken off.

    inside: a document with a mark in its midst, which would be a false boundary, is refused (`refuse`) or cut there (`split`).
    validation: share of documents held out, by the hash of their ids.
    """

    source: str = "converted"
    licence: str = "unknown"
    weight: float = 1.0
    mark: int = -1
    inside: Literal["refuse", "split"] = "refuse"
    validation: float = 0.005
    shard_tokens: int = 1 << 26

    def check(self) -> None:
        """Raises ConfigError."""
        if not 0 <= self.validation < 1:
            raise ConfigError(f"validation ({self.validation}) is the share of documents held out; use a number in [0, 1)")
        if self.shard_tokens < 1:
            raise ConfigError(f"shard_tokens ({self.shard_tokens}) must be positive; use {1 << 26}")
        if self.weight < 0:
            raise ConfigError(f"weight ({self.weight}) must not be negative; use 1")
        if self.inside not in ("refuse", "split"):
            raise ConfigError(f"inside ({self.inside}) is unknown; use refuse or split")


def convert(reader: Reader, tokenizer_json: bytes, out: Path, config: ConvertConfig) -> tuple[Manifest, Counts]:
    """Write the documents as a dataset.

    Raises:
        DataError: ids that are not the tokenizer's, a mark inside of a document, damaged files, a folder that is not empty.
    """
    config.check()
    check_place(out)
    info = tokenizer_info(tokenizer_json)
    marks = {info.document_token, info.document_token if config.mark < 0 else config.mark}
    if max(marks) >= info.vocabulary:
        raise ConfigError(f"document token {max(marks)} must be an id of the tokenizer, below {info.vocabulary}; name another")
    size_of = _sizes(tokenizer_json)
    writer = DatasetWriter(out, tokenizer_json, {config.source: Source(config.weight, config.licence)}, config.shard_tokens)
    counts: Counts = Counter()
    for place, ids in reader.documents():
        _check_ids(place, ids, info.vocabulary)
        for document in _cut(place, ids, sorted(marks), config.inside, counts):
            counts[KEPT] += 1
            held_out = xxhash.xxh3_64_intdigest(document.astype("<u4").tobytes()) < config.validation * 2**64
            writer.add(config.source, "validation" if held_out else "train", document, size_of(document))
    if not counts[KEPT]:
        raise DataError(f"files hold no document ({counts[EMPTY]} empty ones); name files that hold ids")
    manifest = writer.close()
    write_whole(out / "CARD.md", _card(manifest, config, counts))
    manifest.write()
    return manifest, counts


def _check_ids(place: str, ids: np.ndarray, vocabulary: int) -> None:
    if len(ids) and not 0 <= ids.min() <= ids.max() < vocabulary:
        bad = int(ids.max()) if ids.max() >= vocabulary else int(ids.min())
        raise DataError(
            f"{place}: id {bad} is not the tokenizer's, whose ids are below {vocabulary}; give the files' own tokenizer"
        )


def _cut(place: str, ids: np.ndarray, marks: list[int], inside: str, counts: Counts) -> Iterator[np.ndarray]:
    """The document without marks around it, or its parts between marks."""
    text = np.flatnonzero(~np.isin(ids, marks))
    if not len(text):
        counts[EMPTY] += 1
        return
    document = ids[text[0] : text[-1] + 1]
    if len(document) == len(text):
        yield document
        return
    if inside == "refuse":
        at = int(text[0] + np.flatnonzero(np.isin(document, marks))[0])
        raise DataError(
            f"{place}: id {ids[at]} at {at} marks a boundary inside of a document; add --inside split to cut it there, "
            "or name the right --document-token"
        )
    counts[CUT] += 1
    # runs of ids between marks
    yield from np.split(ids[text], np.flatnonzero(np.diff(text) > 1) + 1)


def _sizes(tokenizer_json: bytes) -> Callable[[np.ndarray], int]:
    """ids -> UTF-8 bytes of their text."""
    if is_byte_level(json.loads(tokenizer_json)):
        lengths = byte_lengths(tokenizer_json)
        return lambda ids: int(lengths[ids].sum())
    tokenizer = parse_tokenizer(tokenizer_json)
    return lambda ids: len(tokenizer.decode(ids.tolist(), skip_special_tokens=False).encode())


def _card(manifest: Manifest, config: ConvertConfig, counts: Counts) -> bytes:
    splits = sorted({shard.split for shard in manifest.shards})
    totals = [(split, manifest.totals(split)) for split in splits]
    lines = ["# Data card", "", "Converted from token files of another project.", ""]
    lines += [f"- {name}: {value}" for name, value in asdict(config).items()]
    lines += [f"- documents {name}: {count:,}" for name, count in sorted(counts.items())]
    lines += [f"- {split}: {t.documents:,} documents, {t.tokens:,} tokens, {t.text_bytes:,} bytes of text" for split, t in totals]
    lines += [f"- tokenizer sha256 `{manifest.tokenizer.sha256}`", f"- manifest `{manifest.hash}`"]
    return "\n".join([*lines, ""]).encode()
