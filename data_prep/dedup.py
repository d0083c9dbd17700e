"""Which documents repeat others: exactly, by the xxh3_128 of their text, or nearly, by MinHash and locality-sensitive hashing.

A document's shingles are its word n-grams (`words.py`). Of two documents with Jaccard similarity s of their shingles, one value of
their signatures agrees with probability s (Broder 1997), all `rows` values of a band with s^rows, and at least one band of `bands`
with 1 - (1 - s^rows)^bands: they become a pair (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.4). Pairs join to
clusters, and each cluster keeps its document of the lowest id. As in FineWeb (Penedo et al. 2024, section 3.4: 5-grams, 14 bands
of 8 rows: 92 % of the pairs at s = 0.8, 5 % at 0.5) pairs are not compared once more. Signatures are rensa's, by Fast Similarity
Sketching (Dahlgaard, Knudsen and Thorup 2017). A text of fewer words than a shingle is compared exactly only, as in datatrove; and
as there numbers do not count, so tables that differ in nothing else are near duplicates.

Texts are read once. On disk, while it runs: about 800 bytes per document (signature 448, keys 360 at the defaults) and the ids.
In memory: 32 bytes per document at the peak (the forest; 8 while joining, and one file of keys), 9 per document dropped, and the
ids of one cluster at a time.
"""

import tempfile
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xxhash

from data_prep.clusters import Forest, KeyFiles
from data_prep.dedup_report import Example, Report
from data_prep.signatures import Document, Signed, sign
from llm.errors import ConfigError, DataError

EXACT, NEAR = "exact", "near"
REASONS = (EXACT, NEAR)


@dataclass(frozen=True)
class DedupConfig:
    """words: of a shingle. bands, rows: of the signature of bands * rows values; more bands find more pairs, more rows fewer.

    exact, near: which duplicates to look for. partitions: files that the keys are spread over, which never changes the result; one
    at a time is in memory, 24 * (bands + 1) bytes per document over `partitions`.
    """

    exact: bool = True
    near: bool = True
    words: int = 5
    bands: int = 14
    rows: int = 8
    seed: int = 1
    partitions: int = 64

    def check(self, where: str = "dedup") -> None:
        """Raises ConfigError."""
        if not (self.exact or self.near):
            raise ConfigError(f"{where}.exact and {where}.near (both false) leave nothing to look for; set one")
        for name in ("words", "bands", "rows", "partitions"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{where}.{name} ({getattr(self, name)}) must be at least 1")
        if not 0 <= self.seed < 1 << 64:
            raise ConfigError(f"{where}.seed ({self.seed}) must be an integer of 64 bits; use 0 <= seed < 2**64")
        if self.partitions > 512:
            raise ConfigError(f"{where}.partitions ({self.partitions}) are files open at once; use at most 512")

    def probability(self, similarity: float) -> float:
        """That two documents of this Jaccard similarity share a band, with independent values."""
        return 1 - (1 - similarity**self.rows) ** self.bands


class Duplicates:
    """What to drop, for a second pass over the documents in any order, and the report.

    Documents are known by the xxh3_64 of their ids: of 10^9 documents with 10^8 to drop, the chance that any one is taken for
    another is 0.5 %.
    """

    def __init__(self, hashes: np.ndarray, reasons: np.ndarray, report: Report):
        order = np.argsort(hashes, kind="stable")
        # sorted uint64, and for each the place of its reason in REASONS
        self.hashes, self.reasons, self.report = hashes[order], reasons[order], report

    def __len__(self) -> int:
        return len(self.hashes)

    def reason(self, id: str) -> str | None:
        """Why the document is to be dropped; None: it is kept."""
        wanted = _hash(id)
        k = bisect_left(self._array, wanted)
        return REASONS[self.reasons[k]] if k < len(self._array) and self._array[k] == wanted else None

    @cached_property
    def _array(self) -> array:
        """bisect is four times as fast in an array as numpy is for one value."""
        return array("Q", self.hashes.tobytes())

    def kept(self, documents: Iterable[Document]) -> Iterator[Document]:
        return (document for document in documents if self.reason(document.id) is None)


def are_dropped(ids: list[str], hashes: np.ndarray) -> np.ndarray:
    """bool [ids]: which are among the sorted `hashes` of `Duplicates`; a file that is mapped into memory will do."""
    wanted = np.fromiter(map(_hash, ids), dtype=np.uint64, count=len(ids))
    if not len(hashes):
        return np.zeros(len(ids), dtype=bool)
    return hashes[np.minimum(np.searchsorted(hashes, wanted), len(hashes) - 1)] == wanted


def find_duplicates(documents: Iterable[Document], config: DedupConfig, work: Path, processes: int = 1) -> Duplicates:
    """Read `documents` once and say which of them to drop. The result depends on the set of documents alone.

    Args:
        documents: of unique ids, already cleaned, from any number of sources; read by this process.
        work: a folder with room for what is on disk meanwhile; nothing stays there.
        processes: that compute signatures.

    Raises:
        ConfigError: a setting out of bounds.
        DataError: two copies of one text have the same id.
    """
    config.check()
    return join_duplicates(sign(documents, config, processes), config, work)


def join_duplicates(batches: Iterable[Signed], config: DedupConfig, work: Path) -> Duplicates:
    """`find_duplicates` among documents that are signed already."""
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="dedup-", dir=work) as folder:
        records = _Records(Path(folder))
        with KeyFiles(Path(folder), config.partitions) as keys, records:
            for signed in batches:
                numbers = records.add(signed)
                if config.exact:
                    keys.add(signed.digests, numbers)
                if config.near:
                    shared = signed.keys[signed.shingled]
                    keys.add(shared.reshape(-1, 2), np.repeat(numbers[signed.shingled], config.bands))
        forest = Forest(records.count)
        for first, second in keys.pairs():
            forest.join(first, second)
        return _decide(forest, records)


class _Row(NamedTuple):
    id: str
    number: int
    source: str
    bytes: int
    digest: bytes


class _Records:
    """What is known of each document but its text, on disk; sources and totals in memory."""

    ROW = np.dtype([("digest", "V16"), ("bytes", "<i8"), ("id_end", "<i8"), ("source", "<i4")])

    def __init__(self, folder: Path):
        self.paths = {name: folder / name for name in ("rows", "ids", "signatures")}
        self.count, self.report, self.sources, self._id_end = 0, Report(), {}, 0

    def __enter__(self) -> None:
        self.files = {name: path.open("wb") for name, path in self.paths.items()}

    def __exit__(self, *exception: object) -> None:
        for file in self.files.values():
            file.close()
        self.rows, self.ids = self._map("rows", self.ROW), self._map("ids", np.dtype(np.uint8))
        self.signatures = self._map("signatures", np.dtype("<u4")).reshape(max(1, self.count), -1)

    def _map(self, name: str, dtype: np.dtype) -> np.ndarray:
        path = self.paths[name]
        return np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.empty(0, dtype=dtype)

    def add(self, signed: Signed) -> np.ndarray:
        """Returns the documents' numbers, in the order of reading."""
        rows = np.empty(len(signed.ids), dtype=self.ROW)
        encoded = [id.encode(errors="surrogatepass") for id in signed.ids]
        rows["digest"] = signed.digests.view("V16")[:, 0]
        rows["bytes"] = signed.bytes
        rows["id_end"] = self._id_end + np.cumsum([len(id) for id in encoded])
        rows["source"] = [self.sources.setdefault(source, len(self.sources)) for source in signed.sources]
        for source, size in zip(signed.sources, signed.bytes.tolist(), strict=True):
            self.report.read(source, size)
        for name, content in (("rows", rows.tobytes()), ("ids", b"".join(encoded)), ("signatures", signed.signatures.tobytes())):
            self.files[name].write(content)
        self._id_end = int(rows["id_end"][-1])
        self.count += len(rows)
        return np.arange(self.count - len(rows), self.count)

    def row(self, number: int, sources: list[str]) -> _Row:
        row = self.rows[number]
        start = int(self.rows[number - 1]["id_end"]) if number else 0
        id = bytes(self.ids[start : int(row["id_end"])]).decode(errors="surrogatepass")
        return _Row(id, number, sources[row["source"]], int(row["bytes"]), row["digest"].tobytes())

    def similarity(self, a: int, b: int) -> float | None:
        """The share of equal values of two signatures, which estimates the Jaccard similarity; None: one has no shingles."""
        a_values, b_values = self.signatures[a], self.signatures[b]
        if not len(a_values) or EMPTY in (a_values.min(), b_values.min()):
            return None
        return float((a_values == b_values).mean())


# every value of the signature of no shingles
EMPTY = 0xFFFFFFFF


def _decide(forest: Forest, records: _Records) -> Duplicates:
    report, sources = records.report, list(records.sources)
    hashes, reasons = array("Q"), bytearray()
    for cluster in forest.clusters():
        kept, *others = sorted(records.row(int(number), sources) for number in cluster)
        report.cluster(kept.id, len(cluster))
        seen, before = {kept.digest}, kept.id
        for row in others:
            if row.id == before:
                raise DataError(f"document id ({row.id}) names two documents; give every document an id of its own")
            reason = EXACT if row.digest in seen else NEAR
            seen.add(row.digest)
            before = row.id
            hashes.append(_hash(row.id))
            reasons.append(REASONS.index(reason))
            example = Example(hashes[-1], kept.id, row.id, reason, kept.number, row.number)
            report.drop(row.source, row.bytes, reason, example)
    report.estimate(records.similarity)
    return Duplicates(np.array(hashes, dtype=np.uint64), np.frombuffer(reasons, dtype=np.uint8), report)


def _hash(id: str) -> int:
    return xxhash.xxh3_64_intdigest(id.encode(errors="surrogatepass"))
