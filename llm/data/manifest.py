"""The manifest: one JSON file that names every shard of a dataset, what is in it and how to check it.

`manifest.json` carries its own hash (sha256 of the canonical JSON of everything else); that hash names the dataset in checkpoints.
The file must be byte for byte what `Manifest.write` wrote, so that no edit and no flipped byte passes unseen.
"""

import hashlib
import json
import os
import sys
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any

from llm.data.cache import RemoteFolder
from llm.data.remote import CacheConfig, Unreachable, Wrong, is_remote, read_whole
from llm.errors import ConfigError, DataError
from llm.whole_file import write_bytes

VERSION = 1
NAME = "manifest.json"
TOKENIZER = "tokenizer.json"
# the way out of every damaged shard
REMEDY = "copy it again or prepare the dataset again with --replace"


@dataclass(frozen=True)
class Member:
    """One member of a shard's tar: where its content lies, and its crc32c."""

    offset: int
    bytes: int
    crc32c: int


@dataclass(frozen=True)
class Foreign:
    """A tar of others that an index points into. path: absolute, or relative to the manifest. sha256: of the whole file."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Shard:
    """One tar. path: relative to the manifest. text_bytes: UTF-8 bytes of its documents' text. sha256: of the whole file.

    foreign: where the tokens lie, of a shard that is but an index (`foreign.py`).
    """

    path: str
    split: str
    source: str
    bytes: int
    tokens: int
    documents: int
    text_bytes: int
    sha256: str
    members: dict[str, Member]
    foreign: Foreign | None = None


@dataclass(frozen=True)
class Source:
    """Where text came from. weight: share of the training sequences, relative to the other sources'."""

    weight: float
    licence: str


@dataclass(frozen=True)
class TokenizerInfo:
    """sha256: of tokenizer.json. vocabulary: one past the largest id. document_token: the id that opens every document."""

    sha256: str
    vocabulary: int
    document_token: int


@dataclass(frozen=True)
class Totals:
    """Sums over the shards of a split."""

    tokens: int
    documents: int
    text_bytes: int
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """A dataset. recipe: hash of the recipe that prepared it.

    Not part of the file: root, its folder, and for a dataset elsewhere remote; root is then the folder of its local copies.
    """

    dtype: str
    tokenizer: TokenizerInfo
    sources: dict[str, Source]
    shards: tuple[Shard, ...]
    recipe: str = ""
    root: Path = field(default=Path("."), compare=False)
    remote: RemoteFolder | None = field(default=None, compare=False)

    @classmethod
    def load(cls, path: str | Path, cache: CacheConfig | None = None, check_shards: bool = True) -> "Manifest":
        """Read and check a manifest: version, hash, tokenizer, and that every shard is there in full size.

        Of a dataset elsewhere, manifest and tokenizer are copied into the cache; shards follow when they are first opened.

        Args:
            path: manifest.json or the folder that holds it; also as an address, like `s3://bucket/folder`.
            cache: how a dataset elsewhere is read and kept.
            check_shards: False leaves it to reading to find shards that are missing or cut short.

        Raises:
            DataError: naming what is missing or damaged. ConfigError: a cache that is smaller than a shard.
        """
        if is_remote(path):
            return _load_remote(str(path), cache or CacheConfig())
        try:
            return _load_local(Path(path), check_shards)
        except OSError as error:
            raise DataError(
                f"dataset {path} cannot be read ({error.filename}: {error.strerror}); check its name, and your rights to read it"
            ) from None

    @cached_property
    def hash(self) -> str:
        """sha256 of the manifest's content: the identity of the dataset."""
        return _hash(self._content())

    @property
    def tokenizer_path(self) -> Path:
        return self.root / TOKENIZER

    def open(self, shard: Shard) -> int:
        """A descriptor of a shard's file; what lies elsewhere is downloaded first, unless cached. Raises OSError, DataError."""
        if self.remote is None:
            return os.open(self.root / shard.path, os.O_RDONLY | os.O_CLOEXEC)
        return self.remote.open(self.root, shard.path, shard.bytes, shard.sha256)

    def locate(self, shard: Shard) -> Path:
        """The path of a shard's file, downloaded if need be. `open` it instead where others may need the cache's room."""
        if self.remote is not None:
            os.close(self.open(shard))
        return self.root / shard.path

    def split(self, name: str) -> list[Shard]:
        """The shards of a split, in manifest order. Raises DataError when it holds none."""
        shards = [shard for shard in self.shards if shard.split == name and shard.documents]
        if not shards:
            known = ", ".join(sorted({shard.split for shard in self.shards})) or "none"
            raise DataError(
                f"split {name!r} of {self.root / NAME} is empty (there is: {known}); prepare more text or another validation share"
            )
        return shards

    def totals(self, split: str) -> Totals:
        """Tokens, documents, bytes of text and bytes on disk of a split."""
        shards = self.split(split)
        return Totals(*(sum(getattr(shard, name) for shard in shards) for name in ("tokens", "documents", "text_bytes", "bytes")))

    def write(self) -> None:
        """Write manifest.json into `root`: to a temporary file first, then renamed."""
        content = self._content()
        write_bytes(self.root / NAME, _render({"hash": _hash(content), **content}))

    def _content(self) -> dict[str, Any]:
        content = asdict(self)
        del content["root"], content["remote"]
        for shard in content["shards"]:
            # most shards hold their tokens, and manifests that were written before there were others keep their hash
            if shard["foreign"] is None:
                del shard["foreign"]
        # through JSON, so that tuples compare and hash as the lists they are read back as
        return json.loads(json.dumps({"version": VERSION, **content}))

    def _check_tokenizer(self) -> None:
        if not self.tokenizer_path.is_file():
            raise DataError(
                f"{self.tokenizer_path} is missing; the shards' ids mean nothing without it: copy the dataset folder whole"
            )
        found = hashlib.sha256(self.tokenizer_path.read_bytes()).hexdigest()
        if found != self.tokenizer.sha256:
            raise DataError(
                f"{self.tokenizer_path} (sha256 {found[:12]}) is not the tokenizer of these shards ({self.tokenizer.sha256[:12]}); "
                "put the original back or prepare the dataset again"
            )

    def _check_shard(self, shard: Shard) -> None:
        for file in (shard, shard.foreign) if shard.foreign else (shard,):
            path = self.root / file.path
            if not path.is_file():
                raise DataError(f"shard {path} is missing; {REMEDY}")
            size = path.stat().st_size
            if size != file.bytes:
                raise DataError(
                    f"shard {path} has {size} bytes where the manifest says {file.bytes}; copy it again or prepare the dataset "
                    "again"
                )


def _hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _render(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1, sort_keys=True).encode() + b"\n"


def _parse(raw: bytes, path: Path | str) -> dict[str, Any]:
    """The content of a manifest whose version and hash are right."""
    try:
        content = json.loads(raw)
        version, saved = content["version"], content.pop("hash")
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DataError(f"manifest {path} is damaged: no JSON with a version and a hash; prepare the dataset again") from None
    if version != VERSION:
        raise DataError(f"manifest {path} has version {version!r}, this release reads version {VERSION}; prepare the dataset again")
    if saved != _hash(content) or raw != _render({"hash": saved, **content}):
        raise DataError(
            f"manifest {path} does not match its own hash: it was edited or damaged; restore it or prepare the dataset again"
        )
    return content


def _from_content(content: dict[str, Any], path: Path | str, root: Path) -> Manifest:
    try:
        return Manifest(
            dtype=content["dtype"],
            tokenizer=TokenizerInfo(**content["tokenizer"]),
            sources={name: Source(**source) for name, source in content["sources"].items()},
            shards=tuple(_shard(shard) for shard in content["shards"]),
            recipe=content["recipe"],
            root=root,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"manifest {path} lacks or misnames a field ({error}); prepare the dataset again") from None


def _load_local(path: Path, check_shards: bool) -> Manifest:
    path = path / NAME if path.is_dir() else path
    if not path.is_file():
        raise DataError(f"manifest {path} does not exist; prepare the dataset with `braid-data prepare RECIPE.yaml`")
    manifest = _from_content(_parse(path.read_bytes(), path), path, path.parent)
    manifest._check_tokenizer()
    for shard in manifest.shards if check_shards else ():
        manifest._check_shard(shard)
    return manifest


def _load_remote(address: str, config: CacheConfig) -> Manifest:
    """The manifest at an address, with copies of it and its tokenizer in the cache."""
    remote = RemoteFolder(address.removesuffix(NAME).rstrip("/"), config)
    raw = _fetch(remote)
    content = _parse(raw, f"{remote.url}/{NAME}")
    # named by content: what was kept of another dataset that had this address is not taken for this one
    root = config.root / _hash(content)[:32]
    manifest = replace(_from_content(content, f"{remote.url}/{NAME}", root), remote=remote)
    _check_remote(manifest.shards, remote)
    try:
        manifest._check_tokenizer()
    except DataError:
        check = partial(_check_sha256, sha256=manifest.tokenizer.sha256)
        _keep(remote, manifest.tokenizer_path, read_whole(f"{remote.url}/{TOKENIZER}", config, check))
    _keep(remote, root / NAME, raw)
    return manifest


def _fetch(remote: RemoteFolder) -> bytes:
    """manifest.json as it is now, so that a changed dataset is seen; as it was last, when its server cannot be reached."""
    url = f"{remote.url}/{NAME}"
    last = remote.config.root / "last" / f"{hashlib.sha256(url.encode()).hexdigest()[:32]}.json"

    def check(raw: bytes) -> None:
        try:
            _parse(raw, url)
        except DataError as error:
            raise Wrong(str(error)) from None

    try:
        raw = read_whole(url, remote.config, check)
    except Unreachable as error:
        if not last.is_file():
            raise
        print(f"{error}; going on with the copy of the last time, {last}", file=sys.stderr, flush=True)
        return last.read_bytes()
    _keep(remote, last, raw)
    return raw


def _check_remote(shards: tuple[Shard, ...], remote: RemoteFolder) -> None:
    for shard in shards:
        path = PurePosixPath(shard.path)
        if shard.foreign:
            raise DataError(
                f"manifest {remote.url}/{NAME}: the tokens of shard {shard.path} lie in {shard.foreign.path}, which can be read "
                "from a disk alone; copy both there"
            )
        # nothing is written outside of the cache, whatever a manifest says
        if path.is_absolute() or ".." in path.parts or path.suffix != ".tar":
            raise DataError(f"manifest {remote.url}/{NAME}: shard {shard.path} is no .tar below it; prepare the dataset again")
    bound, largest = remote.config.bytes, max((shard.bytes for shard in shards), default=0)
    if bound < largest:
        raise ConfigError(f"data.cache.bytes ({bound:,}) must hold the largest shard of {remote.url}; use {largest:,} or more")


def _keep(remote: RemoteFolder, path: Path, content: bytes) -> None:
    """Write a copy, unless it is there."""
    try:
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(path, content)
    except OSError as error:
        raise remote.unusable(path.name, len(content), error) from None


def _check_sha256(content: bytes, sha256: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise Wrong(f"sha256 {found[:12]}, the manifest says {sha256[:12]}")


def _shard(values: dict[str, Any]) -> Shard:
    members = {name: Member(**member) for name, member in values["members"].items()}
    foreign = Foreign(**values["foreign"]) if "foreign" in values else None
    return Shard(**{**values, "members": members, "foreign": foreign})
