"""WebDataset tars of arrays of ids, indexed once and trained from in place (`llm/data/foreign.py`)."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import google_crc32c
import numpy as np

from data_prep.convert.convert import finish
from data_prep.convert.ids import ConvertConfig, Counts, Cutter
from data_prep.convert.tars import arrays
from data_prep.place import LEFT, check_new
from data_prep.token_bytes import text_sizes
from llm.data.foreign import ARRAY, ARRAYS, DTYPES
from llm.data.manifest import TOKENIZER, Foreign, Manifest, Shard, Source
from llm.data.shard import token_dtype
from llm.data.write import tokenizer_info, write_index
from llm.errors import DataError
from llm.whole_file import write_bytes


def index_arrays(
    tars: Sequence[Path], tokenizer_json: bytes, out: Path, config: ConvertConfig, extension: str = "npy"
) -> tuple[Manifest, Counts]:
    """A dataset in `out` whose tokens stay in the tars: of each sample the one-dimensional array of ids in `extension`.

    Raises:
        DataError: a tar that is damaged or compressed, arrays that are no documents of this tokenizer, a folder that is not empty.
        ConfigError: settings that cannot work.
    """
    info = tokenizer_info(tokenizer_json)
    cut = Cutter(info, config)
    check_new(out, tars)
    size_of = text_sizes(tokenizer_json)
    out.mkdir(parents=True, exist_ok=True)
    write_bytes(out / TOKENIZER, tokenizer_json)
    sources = {config.source: Source(config.weight, config.licence)}
    writer = _IndexWriter(Manifest(token_dtype(info.vocabulary).name, info, sources, (), root=out), config)
    for tar in tars:
        foreign = _foreign(tar, out)
        for place, offset, ids in arrays(tar, extension, cut.counts):
            for begin, document, split in cut(place, ids):
                writer.add(foreign, split, offset + begin * ids.itemsize, document, size_of(document))
        writer.flush(foreign)
    cut.check_any()
    manifest = writer.close()
    finish(manifest, config, cut.counts, f"Documents lie as .{extension} in WebDataset tars of others, which are read in place.")
    return manifest, cut.counts


def _foreign(tar: Path, out: Path) -> Foreign:
    path, root = tar.resolve(), out.resolve()
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"tar {tar} cannot be read ({error.strerror}); name a file that is there") from None
    name = path.relative_to(root) if path.is_relative_to(root) else path
    return Foreign(str(name), path.stat().st_size, digest)


@dataclass
class _Pile:
    """Documents of one tar and split that wait for their index."""

    arrays: list[tuple[int, int, int]] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    text_bytes: list[int] = field(default_factory=list)
    tokens: int = 0


class _IndexWriter:
    """Writes an index for each tar and split, several where one would hold more than `shard_tokens`."""

    def __init__(self, manifest: Manifest, config: ConvertConfig):
        self._manifest, self._config = manifest, config
        self._piles: dict[str, _Pile] = {}
        self._shards: list[Shard] = []

    def add(self, foreign: Foreign, split: str, offset: int, ids: np.ndarray, text_bytes: int) -> None:
        pile = self._piles.setdefault(split, _Pile())
        if pile.tokens and pile.tokens + len(ids) + 1 > self._config.shard_tokens:
            self._flush(foreign, split)
            pile = self._piles.setdefault(split, _Pile())
        pile.arrays.append((offset, google_crc32c.value(ids.tobytes()), DTYPES.index(ids.dtype.str)))
        pile.lengths.append(len(ids) + 1)
        pile.text_bytes.append(text_bytes)
        pile.tokens += len(ids) + 1

    def flush(self, foreign: Foreign) -> None:
        """Write what is left of a tar."""
        for split in sorted(self._piles):
            self._flush(foreign, split)

    def close(self) -> Manifest:
        """The manifest, not written yet, once indexes of an interrupted earlier writer are removed."""
        names = {shard.path for shard in self._shards}
        for stale in self._manifest.root.glob("index-?????.tar"):
            if stale.name not in names and LEFT.fullmatch(stale.name):
                stale.unlink()
        return replace(self._manifest, shards=tuple(self._shards))

    def _flush(self, foreign: Foreign, split: str) -> None:
        pile, manifest = self._piles.pop(split), self._manifest
        path = manifest.root / f"index-{len(self._shards):05d}.tar"
        content = {ARRAYS: np.array(pile.arrays, ARRAY).tobytes()}
        told = np.array(pile.lengths), np.array(pile.text_bytes)
        self._shards.append(write_index(path, manifest.tokenizer, self._config.source, split, content, *told, foreign))
