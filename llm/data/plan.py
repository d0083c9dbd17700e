"""A dataset's `bestfit` packing, computed once and kept beside the manifest: any sequence is read in O(1).

Documents are packed shard by shard, so a sequence never needs two shards. The file, little endian:

| bytes | content |
|---|---|
| 8 | `BRAIDPK1` |
| 8 | uint64: bytes of the header |
| ... | header, JSON: manifest (its hash), split, sequence_length, groups ([shard, its sequences], in order), pieces, wide |
| ... | zeros up to a multiple of 8 |
| 8 (sequences + 1) | uint64: the first piece of each sequence, counted through the file |
| 4 pieces | uint32, or uint64 if wide: where each piece begins in its shard's tokens |
| 4 pieces | uint32, or uint64 if wide: tokens of each piece |
| 16 | xxh3_128 of everything before |

That is 8 bytes a document and 8 a sequence. Every byte is checked when the file is opened; then pieces are read in place (mmap).
"""

import fcntl
import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from llm.data.foreign import open_shard
from llm.data.manifest import Manifest
from llm.data.packing import Pieces, bestfit
from llm.data.shard import OpenFiles
from llm.errors import DataError
from llm.whole_file import write_bytes

MAGIC = b"BRAIDPK1"
DIGEST = 16
# what lies beside a manifest, the plan and its lock
FILES = ("*.bestfit-*.plan", ".*.bestfit-*.plan.lock")
REMEDY = "delete it, and it is computed again"


@dataclass(frozen=True, eq=False)
class Plan:
    """Packed sequences of a split. groups: names of shards. sequences: int64 [groups + 1], the first sequence of each group."""

    manifest: str
    split: str
    sequence_length: int
    groups: tuple[str, ...]
    sequences: np.ndarray
    first: np.ndarray
    offset: np.ndarray
    length: np.ndarray

    def __len__(self) -> int:
        return int(self.sequences[-1])

    def pieces(self, i: int) -> tuple[int, Pieces]:
        """The group of sequence i, and its pieces on that group's tape."""
        assert 0 <= i < len(self), f"sequence {i} of {len(self)}"
        group = int(self.sequences.searchsorted(i, side="right")) - 1
        here = slice(int(self.first[i]), int(self.first[i + 1]))
        return group, Pieces(self.offset[here].astype(np.int64), self.length[here].astype(np.int64))

    @property
    def padding(self) -> float:
        """The share of all tokens that is padding."""
        return 1 - int(self.length.sum(dtype=np.int64)) / max(1, len(self) * self.sequence_length)

    def write(self, path: Path) -> None:
        """To a temporary file first, then renamed. The same plan gives the same bytes."""
        counts = np.diff(self.sequences).tolist()
        wide = self.offset.dtype == np.dtype("<u8")
        header = json.dumps(
            {
                "manifest": self.manifest,
                "split": self.split,
                "sequence_length": self.sequence_length,
                "groups": list(zip(self.groups, counts, strict=True)),
                "pieces": len(self.offset),
                "wide": wide,
            },
            sort_keys=True,
        ).encode()
        head = MAGIC + len(header).to_bytes(8, "little") + header
        content = b"".join([head, bytes(-len(head) % 8), self.first.tobytes(), self.offset.tobytes(), self.length.tobytes()])
        write_bytes(path, content + xxhash.xxh3_128_digest(content))


def make_plan(manifest: str, split: str, sequence_length: int, groups: Iterable[tuple[str, np.ndarray]]) -> Plan:
    """Pack the documents of each group: (name, lengths in tokens). manifest: its hash. Raises DataError, ConfigError."""
    packings = [(name, bestfit(lengths, sequence_length)) for name, lengths in groups]
    counts = np.cumsum([0] + [len(packing.pieces.offset) for _, packing in packings])
    first = [packing.first[:-1] + count for (_, packing), count in zip(packings, counts[:-1], strict=True)]
    offsets = [packing.pieces.offset for _, packing in packings]
    lengths = [packing.pieces.length for _, packing in packings]
    largest = max((int(values.max()) for values in (*offsets, *lengths) if len(values)), default=0)
    dtype = np.dtype("<u4" if largest < 1 << 32 else "<u8")
    return Plan(
        manifest,
        split,
        sequence_length,
        tuple(name for name, _ in packings),
        np.cumsum([0] + [len(packing) for _, packing in packings], dtype=np.int64),
        np.concatenate([*first, counts[-1:]]).astype("<u8"),
        np.concatenate([*offsets, np.empty(0, np.int64)]).astype(dtype),
        np.concatenate([*lengths, np.empty(0, np.int64)]).astype(dtype),
    )


def planned(manifest: Manifest, split: str, sequence_length: int) -> Plan:
    """The plan of a split, made by the first process that asks for it while others wait. Raises DataError: it cannot be written."""
    path = plan_path(manifest.root, split, sequence_length)
    if not path.is_file():
        try:
            with path.with_name(f".{path.name}.lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not path.is_file() and not _fetched(manifest, path):
                    _lengths_packed(manifest, split, sequence_length).write(path)
        except OSError as error:
            raise DataError(
                f"plan {path} cannot be written ({error.strerror}); make the dataset's folder writable for the first run, "
                "or use data.packing=concat"
            ) from None
    return load_plan(path, manifest.hash, split, sequence_length)


def _fetched(manifest: Manifest, path: Path) -> bool:
    """Copy the plan that lies beside the manifest of a dataset elsewhere, if one does. Raises DataError."""
    if manifest.remote is None:
        return False
    content = manifest.remote.read_beside(path.name)
    if content is None:
        print(
            f"{manifest.remote.url} has no {path.name}: every shard is read to make it; upload it to spare others that",
            file=sys.stderr,
        )
        return False
    write_bytes(path, content)
    return True


def _lengths_packed(manifest: Manifest, split: str, sequence_length: int) -> Plan:
    readers = (open_shard(manifest, shard, files) for files in [OpenFiles()] for shard in manifest.split(split))
    groups = ((reader.shard.path, np.diff(reader.doc_ends, prepend=0)) for reader in readers)
    return make_plan(manifest.hash, split, sequence_length, groups)


def plan_path(root: Path, split: str, sequence_length: int) -> Path:
    """Where the plan of a dataset in `root` lies."""
    return root / f"{split}.bestfit-{sequence_length}.plan"


def load_plan(path: Path, manifest: str, split: str, sequence_length: int) -> Plan:
    """Read and check a plan. Raises DataError when it is missing, damaged or of another manifest, split or length."""
    header, begin = _header(path)
    for name, now in {"manifest": manifest, "split": split, "sequence_length": sequence_length}.items():
        if header[name] != now:
            raise DataError(f"plan {path} is for {name} {header[name]!r}, not {now!r}; {REMEDY}")
    sequences = np.cumsum([0] + [count for _, count in header["groups"]], dtype=np.int64)
    dtype, pieces = np.dtype("<u8" if header["wide"] else "<u4"), header["pieces"]
    offsets_at = begin + 8 * (int(sequences[-1]) + 1)
    lengths_at = offsets_at + pieces * dtype.itemsize
    # as a plain array: every slice of a memmap costs microseconds
    content = np.memmap(path, mode="r").view(np.ndarray)
    return Plan(
        manifest,
        split,
        sequence_length,
        tuple(name for name, _ in header["groups"]),
        sequences,
        content[begin:offsets_at].view("<u8"),
        content[offsets_at:lengths_at].view(dtype),
        content[lengths_at : lengths_at + pieces * dtype.itemsize].view(dtype),
    )


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a plan whose bytes are all right, and where its arrays begin."""
    if not path.is_file():
        raise DataError(f"plan {path} does not exist; it is computed when the dataset is first packed")
    digest, size = xxhash.xxh3_128(), path.stat().st_size - DIGEST
    try:
        with path.open("rb") as file:
            head = file.read(16)
            # a damaged length of the header does no harm: the digest is of the same bytes, however they are parted
            header = file.read(max(0, min(int.from_bytes(head[8:], "little"), size - 16)))
            digest.update(head + header)
            for low in range(16 + len(header), size, 1 << 24):
                digest.update(file.read(min(1 << 24, size - low)))
            whole = head[:8] == MAGIC and file.read() == digest.digest()
    except OSError as error:
        raise DataError(f"plan {path} cannot be read ({error.strerror}); {REMEDY}") from None
    if not whole:
        raise DataError(f"plan {path} is damaged: its checksum differs; {REMEDY}")
    begin = 16 + len(header)
    return json.loads(header), begin + -begin % 8
