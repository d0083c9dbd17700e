"""What deduplication found, as numbers and examples that depend on the set of documents alone."""

import heapq
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

EXAMPLES = 10


class Example(NamedTuple):
    """A pair. order: a hash of the dropped id; those of the lowest are shown, which is a sample of all."""

    order: int
    kept: str
    dropped: str
    reason: str
    kept_number: int
    dropped_number: int


@dataclass
class SourceCounts:
    """Documents and bytes of UTF-8: read, and dropped by reason."""

    documents: int = 0
    bytes: int = 0
    exact: int = 0
    exact_bytes: int = 0
    near: int = 0
    near_bytes: int = 0


@dataclass
class Report:
    """sources: by name. sizes: how many clusters have how many documents. largest: (documents, kept id) of the largest clusters.
    pairs: examples of near duplicates with their estimated Jaccard similarity; low where only other documents join the two.
    """

    sources: dict[str, SourceCounts] = field(default_factory=dict)
    sizes: Counter[int] = field(default_factory=Counter)
    largest: list[tuple[int, str]] = field(default_factory=list)
    pairs: list[dict] = field(default_factory=list)
    _examples: list[Example] = field(default_factory=list)

    def read(self, source: str, size: int) -> None:
        counts = self.sources.setdefault(source, SourceCounts())
        counts.documents += 1
        counts.bytes += size

    def cluster(self, kept: str, documents: int) -> None:
        self.sizes[documents] += 1
        self.largest = heapq.nsmallest(EXAMPLES, [*self.largest, (documents, kept)], key=lambda entry: (-entry[0], entry[1]))

    def drop(self, source: str, size: int, reason: str, example: Example) -> None:
        counts = self.sources[source]
        setattr(counts, reason, getattr(counts, reason) + 1)
        setattr(counts, f"{reason}_bytes", getattr(counts, f"{reason}_bytes") + size)
        if reason == "near":
            self._examples.append(example)
        if len(self._examples) > 100 * EXAMPLES:
            self._examples = heapq.nsmallest(EXAMPLES, self._examples)

    def estimate(self, similarity: Callable[[int, int], float | None]) -> None:
        """Fill in `pairs`. similarity: of two documents by number."""
        for example in heapq.nsmallest(EXAMPLES, self._examples):
            estimate = similarity(example.kept_number, example.dropped_number)
            self.pairs.append({"kept": example.kept, "dropped": example.dropped, "similarity": estimate})
        self._examples = []

    def to_json(self) -> str:
        """The same characters for the same set of documents."""
        content = {
            "sources": {name: vars(counts) for name, counts in self.sources.items()},
            "clusters": {str(size): self.sizes[size] for size in sorted(self.sizes)},
            "largest": [{"kept": kept, "documents": documents} for documents, kept in self.largest],
            "pairs": self.pairs,
        }
        return json.dumps({**content, "sources": dict(sorted(content["sources"].items()))}, indent=1)
