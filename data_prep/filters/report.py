"""What each rule kept and dropped, with samples to look at, the same whatever the order of the documents."""

import heapq
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

import xxhash

SAMPLES = 5
EXCERPT = 300


class Sample(NamedTuple):
    """hash: of the id; the lowest ones are the sample. excerpt: the beginning of the document."""

    hash: int
    id: str
    excerpt: str


@dataclass
class RuleReport:
    """kept, dropped: of the documents that came as far as this rule. bytes_dropped: of UTF-8, as they came to the first rule."""

    kept: int = 0
    dropped: int = 0
    bytes_dropped: int = 0
    samples: list[Sample] = field(default_factory=list)

    def drop(self, id: str, text: str) -> None:
        self.dropped += 1
        self.bytes_dropped += len(text.encode())
        hash = xxhash.xxh3_64_intdigest(id.encode(errors="surrogatepass"))
        if len(self.samples) < SAMPLES or hash < self.samples[-1].hash:
            self._hold([Sample(hash, id, text[:EXCERPT])])

    def _hold(self, more: list[Sample]) -> None:
        self.samples = heapq.nsmallest(SAMPLES, [*self.samples, *more])

    def merge(self, other: "RuleReport") -> None:
        self.kept += other.kept
        self.dropped += other.dropped
        self.bytes_dropped += other.bytes_dropped
        self._hold(other.samples)


@dataclass
class FilterReport:
    """rules: by name, in the order in which documents meet them. lines: of kept and dropped pages, by what C4's line rules did."""

    rules: dict[str, RuleReport] = field(default_factory=dict)
    lines: Counter[str] = field(default_factory=Counter)

    def rule(self, name: str) -> RuleReport:
        return self.rules.setdefault(name, RuleReport())

    def to_dict(self) -> dict:
        """As JSON can hold it; `of` reads it."""
        return {"rules": {name: vars(rule) for name, rule in self.rules.items()}, "lines": dict(self.lines)}

    @classmethod
    def of(cls, values: dict) -> "FilterReport":
        rules = {
            name: RuleReport(**rule | {"samples": [Sample(*sample) for sample in rule["samples"]]})
            for name, rule in values["rules"].items()
        }
        return cls(rules, Counter(values["lines"]))

    def merge(self, other: "FilterReport") -> None:
        """Add another part's report, such as another process's."""
        for name, found in other.rules.items():
            self.rule(name).merge(found)
        self.lines += other.lines
