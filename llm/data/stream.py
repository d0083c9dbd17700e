"""Token streams: sequences of T + 1 tokens by index.

A window is T + 1 tokens from a grid of stride T over a shard's blob; the last is only ever a label. Document boundaries come from
the index. A window that begins inside a document starts afresh there.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from llm.data.config import DataConfig
from llm.data.manifest import Manifest, Shard
from llm.data.order import Order
from llm.data.shard import OpenFiles, ShardReader
from llm.errors import ConfigError, DataError

# stands for "no token" in rows: labels there are not scored
PAD = -1


class Windows:
    """The grid over a list of shards: window k -> T + 1 tokens.

    Args:
        tail: also keep the last, shorter window of each shard, filled up with PAD.
    """

    def __init__(self, manifest: Manifest, shards: list[Shard], sequence_length: int, files: OpenFiles, tail: bool = False):
        self.sequence_length = sequence_length
        self._readers = [ShardReader(manifest, shard, files) for shard in shards]
        labels = np.array([max(0, shard.tokens - 1) for shard in shards], dtype=np.int64)
        counts = -(-labels // sequence_length) if tail else labels // sequence_length
        self._first = np.concatenate([[0], counts.cumsum()])

    def __len__(self) -> int:
        return int(self._first[-1])

    def read(self, window: int, tokens_T: np.ndarray, starts_T: np.ndarray) -> None:
        """Fill T + 1 `tokens_T` and T `starts_T` (which hold PAD and False)."""
        k = int(np.searchsorted(self._first, window, side="right")) - 1
        reader = self._readers[k]
        low = int(window - self._first[k]) * self.sequence_length
        high = min(low + self.sequence_length + 1, reader.shard.tokens)
        tokens_T[: high - low] = reader.tokens(low, high)
        inside = slice(*np.searchsorted(reader.doc_starts, [low, low + self.sequence_length]))
        starts_T[reader.doc_starts[inside] - low] = True
        starts_T[0] = True


class TokenStream:
    """The training sequences of a split: an endless stream that is a pure function of (manifest, seed, index).

    Args:
        seed: of the order.

    Raises:
        DataError: an empty split, or a source without one whole sequence. ConfigError: a length below 1.
    """

    def __init__(self, manifest: Manifest, split: str, config: DataConfig, seed: int):
        if config.sequence_length < 1 or config.prefetch < 0:
            raise ConfigError(
                f"data.sequence_length ({config.sequence_length}) must be at least 1, prefetch ({config.prefetch}) at least 0; "
                "use 1024 and 2"
            )
        self.manifest, self.config, self.seed = manifest, config, seed
        self.sequence_length = config.sequence_length
        files, shards = OpenFiles(), manifest.split(split)
        # sorted: the order must not depend on how a mapping was read
        names = sorted({shard.source for shard in shards if manifest.sources[shard.source].weight > 0})
        if not names:
            raise DataError(
                f"split {split!r} of {manifest.root} has no source of positive weight; give one a weight and prepare again"
            )
        self._windows = {}
        for name in names:
            mine = [shard for shard in shards if shard.source == name]
            self._windows[name] = Windows(manifest, mine, self.sequence_length, files)
            if not len(self._windows[name]):
                _refuse_length(self.sequence_length, name, split, max(shard.tokens for shard in mine))
        self._by_source = list(self._windows.values())
        self.order = Order(
            {name: len(windows) for name, windows in self._windows.items()},
            {name: manifest.sources[name].weight for name in names},
            seed,
        )

    def __len__(self) -> int:
        """Windows per epoch, all sources together."""
        return sum(map(len, self._by_source))

    def sequence(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        """tokens int64 [T + 1] and starts bool [T] of sequence i, i >= 0 without bound."""
        tokens, starts = self.rows(np.array([i]))
        return tokens[0], starts[0]

    def rows(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """tokens int64 [n, T + 1] and starts bool [n, T] of n sequences. Raises DataError when a shard is damaged."""
        draws = self.order(indices)
        tokens, starts = empty_rows(len(draws.window), self.sequence_length)
        for n, (source, window) in enumerate(zip(draws.source, draws.window, strict=True)):
            self._by_source[source].read(int(window), tokens[n], starts[n])
        return tokens, starts

    def identity(self) -> dict[str, str | int]:
        """What the stream is a function of, besides the index."""
        return {
            "manifest": self.manifest.hash,
            "seed": self.seed,
            "sequence_length": self.sequence_length,
            "packing": self.config.packing,
        }

    def check_state(self, saved: dict) -> None:
        """Raise DataError unless `saved` was taken from this very stream, so that `consumed` means the same sequences."""
        for name, now in self.identity().items():
            if saved.get(name) != now:
                raise DataError(
                    f"data {name} ({now}) must be the checkpoint's ({saved.get(name)}), or `consumed` means other sequences; "
                    "resume with the data that the run began with, or start a new run"
                )


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
        reader = ShardReader(manifest, shard, files)
        for low, high, size in zip(reader.doc_starts, reader.doc_ends, reader.text_bytes, strict=True):
            yield Document(reader.tokens(int(low), int(high)).astype(np.int64), int(size), shard.source)


def empty_rows(n: int, sequence_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to be filled: tokens [n, T + 1] of PAD, starts [n, T] of False."""
    return np.full((n, sequence_length + 1), PAD, dtype=np.int64), np.zeros((n, sequence_length), dtype=bool)


def _refuse_length(sequence_length: int, source: str, split: str, longest: int) -> None:
    raise DataError(
        f"data.sequence_length ({sequence_length}) must be less than the {longest} tokens of the longest shard of {source!r} "
        f"in split {split!r}; use at most {longest - 1}, or prepare more text"
    )
