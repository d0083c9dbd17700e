"""Rereading a dataset and checking every byte of it."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from llm.data.foreign import open_shard
from llm.data.manifest import REMEDY, VERSION, Foreign, Manifest, Shard
from llm.data.shard import META, OpenFiles, ShardReader
from llm.data.write import find_members
from llm.errors import DataError


def verify(manifest: Manifest, shards: Iterable[Shard] | None = None) -> None:
    """Check every shard: the file's sha256, its members, every block, the document index and the ids.

    Args:
        shards: those of the manifest, perhaps wrapped in a progress bar.

    Raises:
        DataError: naming the first shard that is wrong.
    """
    files, tars = OpenFiles(), set[Foreign]()
    for shard in manifest.shards if shards is None else shards:
        path = manifest.locate(shard)
        content = path.read_bytes()
        reader = open_shard(manifest, shard, files)
        # blocks and members first: they say where the damage is
        tokens = reader.tokens(0, shard.tokens)
        _check_index(manifest, reader, tokens)
        if hashlib.sha256(content).hexdigest() != shard.sha256:
            raise DataError(f"shard {path} is corrupt outside its tokens (sha256 differs); {REMEDY}")
        _check_tar(manifest, shard, path, content)
        if shard.foreign and shard.foreign not in tars:
            _check_foreign(manifest.root / shard.foreign.path, shard.foreign)
            tars.add(shard.foreign)


def _check_index(manifest: Manifest, reader: ShardReader, tokens: np.ndarray) -> None:
    shard, ends = reader.shard, reader.doc_ends
    law = (
        len(ends) == len(reader.text_bytes) == shard.documents
        and ends[-1] == shard.tokens
        and (np.diff(ends, prepend=0) > 0).all()
        and reader.text_bytes.sum() == shard.text_bytes
    )
    if not law:
        raise DataError(f"shard {reader.path}: its document index contradicts the manifest's counts; prepare the dataset again")
    opening = np.flatnonzero(tokens == manifest.tokenizer.document_token)
    if not np.array_equal(opening, reader.doc_starts):
        raise DataError(
            f"shard {reader.path}: the document token must open every document and appear nowhere else; prepare the dataset again"
        )
    if tokens.max() >= manifest.tokenizer.vocabulary:
        raise DataError(
            f"shard {reader.path}: id {tokens.max()} is outside the vocabulary ({manifest.tokenizer.vocabulary}); prepare it again"
        )


def _check_tar(manifest: Manifest, shard: Shard, path: Path, content: bytes) -> None:
    if find_members(content, path.stem) != shard.members:
        raise DataError(f"shard {path}: its members lie elsewhere than the manifest says; prepare the dataset again")
    at = shard.members[META]
    meta = json.loads(content[at.offset : at.offset + at.bytes])
    told = {"version": VERSION, "dtype": manifest.dtype, "tokenizer": manifest.tokenizer.sha256}
    told |= {key: getattr(shard, key) for key in ("source", "split", "tokens", "documents", "text_bytes")}
    if meta != told:
        raise DataError(f"shard {path}: its {META} contradicts the manifest; prepare the dataset again")


def _check_foreign(path: Path, foreign: Foreign) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != foreign.sha256:
        raise DataError(f"tar {path} is not the one that was indexed, outside of its documents (sha256 differs); index it again")
