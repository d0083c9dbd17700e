"""Writing a dataset: shards by source and split, then the manifest, last. The same documents give the same bytes."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import google_crc32c
import numpy as np
from webdataset import TarWriter

from llm.data.manifest import NAME, TOKENIZER, VERSION, Foreign, Manifest, Member, Shard, Source, TokenizerInfo
from llm.data.shard import BLOCK, CRC, DOC_ENDS, META, TEXT_ENDS, TOKENS, token_dtype
from llm.data.tokenizer import DOCUMENT_TOKEN, parse_tokenizer, vocabulary_size
from llm.errors import DataError
from llm.whole_file import write_bytes


@dataclass
class _Pile:
    """Documents of one source and split that wait for their shard."""

    documents: list[np.ndarray] = field(default_factory=list)
    text_bytes: list[int] = field(default_factory=list)
    tokens: int = 0


class DatasetWriter:
    """Fills a dataset folder: `add` documents, then `finish`.

    Until `finish` has written the manifest the folder is no dataset; an interrupted one is simply written again.

    Args:
        folder: made if needed; holds no manifest yet. tokenizer: the content of a tokenizer.json.
        shard_tokens: a shard is closed before it would hold more, unless a single document does.
    """

    def __init__(
        self, folder: Path, tokenizer: bytes, sources: Mapping[str, Source], shard_tokens: int = 1 << 26, recipe: str = ""
    ):
        if (folder / NAME).exists():
            raise DataError(f"{folder} holds a dataset already; choose another folder or delete that one")
        # refuses a tokenizer that is none before anything is written
        self._tokenizer = tokenizer_info(tokenizer)
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / TOKENIZER, tokenizer)
        self._folder, self._sources, self._shard_tokens, self._recipe = folder, dict(sources), shard_tokens, recipe
        self._dtype = token_dtype(self._tokenizer.vocabulary)
        self._piles: dict[tuple[str, str], _Pile] = {}
        self._shards: list[Shard] = []

    def add(self, source: str, split: str, tokens: np.ndarray | list[int], text_bytes: int) -> None:
        """Append one document: the ids of its text (the document token is put before them) and the text's UTF-8 bytes."""
        pile = self._piles.setdefault((source, split), _Pile())
        document = np.concatenate([[self._tokenizer.document_token], np.asarray(tokens, dtype=np.int64)])
        assert 0 <= document.min() <= document.max() < self._tokenizer.vocabulary, "ids of another tokenizer"
        if pile.tokens and pile.tokens + len(document) > self._shard_tokens:
            self._flush(source, split)
            pile = self._piles.setdefault((source, split), _Pile())
        pile.documents.append(document.astype(self._dtype))
        pile.text_bytes.append(text_bytes)
        pile.tokens += len(document)

    def finish(self) -> Manifest:
        """`close`, and make the folder a dataset by writing its manifest."""
        manifest = self.close()
        manifest.write()
        return manifest

    def close(self) -> Manifest:
        """Write what is left and remove shards of an interrupted earlier writer. The manifest returned is not written yet."""
        for source, split in sorted(self._piles):
            self._flush(source, split)
        names = {shard.path for shard in self._shards}
        for stale in self._folder.glob("shard-*.tar"):
            if stale.name not in names:
                stale.unlink()
        return Manifest(self._dtype.name, self._tokenizer, self._sources, tuple(self._shards), self._recipe, self._folder)

    def _flush(self, source: str, split: str) -> None:
        pile = self._piles.pop((source, split))
        path = shard_path(self._folder, len(self._shards))
        lengths = np.array([len(document) for document in pile.documents])
        tokens = np.concatenate(pile.documents).tobytes()
        self._shards.append(write_shard(path, self._tokenizer, source, split, tokens, lengths, np.array(pile.text_bytes)))


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.tar"


def write_shard(
    path: Path, tokenizer: TokenizerInfo, source: str, split: str, tokens: bytes, lengths: np.ndarray, text_bytes: np.ndarray
) -> Shard:
    """Write a shard and return its entry in the manifest.

    Args:
        path: of the tar. tokens: ids in the tokenizer's dtype; the document token opens every document.
        lengths, text_bytes: int64 [documents], tokens and bytes of UTF-8 text of each.
    """
    return write_index(path, tokenizer, source, split, {TOKENS: tokens, CRC: block_checksums(tokens)}, lengths, text_bytes)


def write_index(
    path: Path,
    tokenizer: TokenizerInfo,
    source: str,
    split: str,
    content: Mapping[str, bytes],
    lengths: np.ndarray,
    text_bytes: np.ndarray,
    foreign: Foreign | None = None,
) -> Shard:
    """Write the tar of a shard whose tokens are `content`, or lie in a `foreign` tar and are told of by it."""
    documents, tokens, size = len(lengths), int(lengths.sum()), int(text_bytes.sum())
    meta = {
        "version": VERSION,
        "dtype": token_dtype(tokenizer.vocabulary).name,
        "tokenizer": tokenizer.sha256,
        "source": source,
        "split": split,
        "tokens": tokens,
        "documents": documents,
        "text_bytes": size,
    }
    members = {
        **content,
        DOC_ENDS: np.cumsum(lengths).astype("<u8").tobytes(),
        TEXT_ENDS: np.cumsum(text_bytes).astype("<u8").tobytes(),
        META: json.dumps(meta, sort_keys=True).encode(),
    }
    tar = _tar(path.stem, members)
    write_bytes(path, tar)
    found, digest = find_members(tar, path.stem), hashlib.sha256(tar).hexdigest()
    return Shard(path.name, split, source, len(tar), tokens, documents, size, digest, found, foreign)


def tokenizer_info(content: bytes, name: str = "tokenizer.json") -> TokenizerInfo:
    """What a manifest says of the tokenizer in `content`, called `name` in messages. Raises DataError when it lacks the document
    token.
    """
    tokenizer = parse_tokenizer(content, name)
    document_token = tokenizer.token_to_id(DOCUMENT_TOKEN)
    if document_token is None:
        raise DataError(f"{name} lacks the token {DOCUMENT_TOKEN}, which opens every document; add it as a special token")
    return TokenizerInfo(hashlib.sha256(content).hexdigest(), vocabulary_size(tokenizer), document_token)


def block_checksums(tokens: bytes) -> bytes:
    """crc32c of every 64 KiB block, uint32 little endian."""
    view = memoryview(tokens)
    return np.array([google_crc32c.value(bytes(view[low : low + BLOCK])) for low in range(0, len(view), BLOCK)], "<u4").tobytes()


def find_members(content: bytes, key: str) -> dict[str, Member]:
    """Where the members of a shard's bytes lie, by name without the key."""
    found, view = {}, memoryview(content)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        for info in tar:
            data = view[info.offset_data : info.offset_data + info.size]
            found[info.name.removeprefix(f"{key}.")] = Member(info.offset_data, info.size, _checksum(data))
    return found


def _checksum(data: memoryview) -> int:
    """crc32c, without a copy of all of it."""
    found = 0
    for low in range(0, len(data), 1 << 20):
        found = google_crc32c.extend(found, bytes(data[low : low + (1 << 20)]))
    return found


def _tar(key: str, members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    # one fixed time, owner and mode: the same documents give the same bytes
    with TarWriter(buffer, user="", group="", mode=0o444, mtime=0, encoder=False) as tar:
        tar.write({"__key__": key, **members})
    return buffer.getvalue()
