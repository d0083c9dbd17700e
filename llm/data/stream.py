"""Token streams: training rows of T tokens by index, a pure function of (manifest, seed, index) and the settings in `identity`.

A stream is tapes (one for each source), an order that says which row of which source comes at index i, and a packing that says
which spans of the tape are in that row.
"""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from llm.data.config import DataConfig
from llm.data.foreign import open_shard
from llm.data.manifest import Manifest
from llm.data.rows import ContiguousRows, PermutedRows, Place, packed
from llm.data.shard import OpenFiles
from llm.data.tape import Rows, Tape
from llm.errors import ConfigError, DataError, did_you_mean

# other sequences that are tried in the place of a damaged one
ATTEMPTS = 16


class TokenStream:
    """The endless training rows of a split.

    Args:
        seed: of the order. batch: rows of a step, which `contiguous` packing fixes for the run. begin: its first index. after: a
            stream with the same sequences (`cut_of`), which it goes on from, and the index at which that ended.

    Raises:
        DataError: an empty split, a source shorter than a sequence. ConfigError: settings that cannot work.
    """

    def __init__(
        self,
        manifest: Manifest,
        split: str,
        config: DataConfig,
        seed: int,
        batch: int | None = None,
        begin: int = 0,
        after: "tuple[TokenStream, int] | None" = None,
    ):
        config.check()
        self.manifest, self.config, self.seed = manifest, config, seed
        self.sequence_length = config.sequence_length
        files, shards, weights = OpenFiles(), manifest.split(split), weights_of(manifest, split, config)
        self._tapes = {name: Tape(manifest, [shard for shard in shards if shard.source == name], files) for name in weights}
        for name, tape in self._tapes.items():
            if len(tape) < self.sequence_length:
                raise DataError(
                    f"data.sequence_length ({self.sequence_length}) must be at most the {len(tape)} tokens of {name!r} in split "
                    f"{split!r}; use {len(tape)} or less, prepare more text, or leave the source out with data.mixture"
                )
        last: Any = None if after is None else (after[0].order, after[1])
        self.order: PermutedRows | ContiguousRows
        if config.packing == "contiguous":
            self.order = ContiguousRows(self._tapes, weights, config, seed, batch, begin, last)
        else:
            self.order = PermutedRows(packed(self._tapes, manifest, split, config), weights, config, seed, begin, last)
        self._by_source = list(self._tapes.values())
        # rows that were replaced by others
        self.substituted, self._lock = 0, threading.Lock()

    def __len__(self) -> int:
        """Rows of one epoch of every source."""
        return len(self.order)

    def rows(self, indices: np.ndarray) -> Rows:
        """The rows of n indices, each at least `begin` and without bound. Raises DataError when a shard is damaged."""
        rows = self.padding(len(indices))
        for n, place in enumerate(self.order.places(np.asarray(indices))):
            try:
                self._fill(rows, n, place)
            except DataError:
                if self.config.on_corrupt == "stop":
                    raise
                self._substitute(rows, n, place)
        return rows

    def padding(self, n: int) -> Rows:
        return Rows.padding(n, self.sequence_length, self.manifest.tokenizer.document_token)

    def lanes(self, indices: np.ndarray) -> np.ndarray:
        """int64: the order's lane of each index: rows of one lane lie near each other on disk."""
        return self.order.lanes(np.asarray(indices))

    def epochs(self, indices: np.ndarray) -> np.ndarray:
        """int64: which time its source is read at each index, from 0."""
        return np.array([place.epoch for place in self.order.places(np.asarray(indices))], dtype=np.int64)

    def documents(self, indices: np.ndarray) -> dict[str, set[int]]:
        """By shard, the numbers of the documents that rows have tokens of; where a row was substituted, of the damaged one."""
        found: dict[str, set[int]] = {}
        for place in self.order.places(np.asarray(indices)):
            for span in place.spans:
                for shard, documents in self._by_source[place.source].documents(span):
                    found.setdefault(shard, set()).update(documents)
        return found

    def repetitions(self, rows: int) -> list[str]:
        """A warning for each source that is read too often up to index `rows`."""
        return self.order.repetitions(rows)

    def _fill(self, rows: Rows, n: int, place: Place) -> None:
        self._by_source[place.source].fill(rows, n, place.spans, place.continues)

    def _substitute(self, rows: Rows, n: int, place: Place) -> None:
        """Another row of the same source instead: which one follows from the place alone."""
        assert isinstance(self.order, PermutedRows)
        for attempt in range(1, ATTEMPTS + 1):
            for mine, blank in zip(rows, self.padding(1), strict=True):
                mine[n] = blank[0]
            try:
                self._fill(rows, n, self.order.substitute(place, attempt))
                break
            except DataError:
                if attempt == ATTEMPTS:
                    raise
        with self._lock:
            self.substituted += 1

    def identity(self) -> dict[str, str | int]:
        """What the stream is a function of, besides the index."""
        return {
            "manifest": self.manifest.hash,
            "seed": self.seed,
            "sequence_length": self.sequence_length,
            "packing": self.config.packing,
            "lanes": self.order.canonical_lanes,
            "mixture": ", ".join(f"{name}: {share}" for name, share in self.order.shares.items()),
        }

    def check_state(self, saved: dict) -> None:
        """Raise DataError unless `saved` was taken from this very stream, so that `consumed` means the same rows."""
        for name, now in self.identity().items():
            if saved.get(name) != now:
                raise DataError(
                    f"data {name} ({now}) must be the checkpoint's ({saved.get(name)}), or `consumed` means other sequences; "
                    "resume with the data that the run began with, or start a new run"
                )


def cut_of(config: DataConfig, batch: int) -> tuple:
    """What a stream's sequences are cut by: of streams with equal ones, one can go on where another ended."""
    cut = (config.manifest, config.sequence_length, config.packing, config.lanes)
    return (*cut, batch, config.mixture) if config.packing == "contiguous" else cut


def weights_of(manifest: Manifest, split: str, config: DataConfig) -> dict[str, float | Fraction]:
    """The positive weights of the sources that a stream reads, by name in a fixed order. Raises ConfigError, DataError."""
    there = {shard.source for shard in manifest.split(split)}
    if config.mixture is None:
        weights = {name: source.weight for name, source in manifest.sources.items() if name in there}
    else:
        weights = config.mixture
        for name, weight in weights.items():
            if name not in there:
                raise ConfigError(f"data.mixture names {name!r}, which split {split!r} does not hold; {did_you_mean(name, there)}")
            if not 0 <= weight < float("inf"):
                raise ConfigError(f"data.mixture.{name} ({weight}) must not be negative or infinite; use 0 to leave it out")
    # sorted: the order must not depend on how a mapping was read
    found: dict[str, float | Fraction] = {name: weights[name] for name in sorted(weights) if weights[name] > 0}
    if not found:
        raise DataError(
            f"split {split!r} of {manifest.root} has no source of positive weight; give one a weight in data.mixture, "
            "or in the recipe, and prepare again"
        )
    return found


@dataclass(frozen=True)
class Document:
    """A document. tokens: int64, its opening token first. text_bytes: UTF-8 bytes of its text."""

    tokens: np.ndarray
    text_bytes: int
    source: str


def documents(manifest: Manifest, split: str) -> Iterator[Document]:
    """The documents of a split, in stored order. Raises DataError for an empty split or a damaged shard."""
    files = OpenFiles()
    for shard in manifest.split(split):
        reader = open_shard(manifest, shard, files)
        for low, high, size in zip(reader.doc_starts, reader.doc_ends, reader.text_bytes, strict=True):
            yield Document(reader.tokens(int(low), int(high)).astype(np.int64), int(size), shard.source)
