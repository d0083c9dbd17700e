"""The ledger of a source: how many documents and bytes each step took, so that what was read is what was dropped or is left."""

from dataclasses import asdict, dataclass, field
from typing import NamedTuple

from data_prep.clean import EXAMPLES, Report
from data_prep.decontaminate import FileReport
from data_prep.dedup_report import SourceCounts
from data_prep.filters import FilterReport


@dataclass
class Count:
    """bytes: of UTF-8."""

    documents: int = 0
    bytes: int = 0

    def add(self, size: int) -> None:
        self.documents += 1
        self.bytes += size

    def merge(self, other: "Count") -> None:
        self.documents += other.documents
        self.bytes += other.bytes


@dataclass
class Processed:
    """What became of the records of a source, or of a part of them, up to the search for duplicates.

    cleaned, edited: bytes that cleaning, and C4's line rules, took out of the documents that stayed; less than 0 where they added.
    contaminated: dropped ones. evaluations: by file, what matched it. empty_examples: the first ids.
    """

    records: Count = field(default_factory=Count)
    empty: Count = field(default_factory=Count)
    contaminated: Count = field(default_factory=Count)
    kept: Count = field(default_factory=Count)
    cleaned: int = 0
    edited: int = 0
    filters: FilterReport = field(default_factory=FilterReport)
    evaluations: dict[str, FileReport] = field(default_factory=dict)
    empty_examples: list[str] = field(default_factory=list)

    def merge(self, other: "Processed") -> None:
        """Add the part that follows."""
        for name in ("records", "empty", "contaminated", "kept", "filters"):
            getattr(self, name).merge(getattr(other, name))
        self.cleaned += other.cleaned
        self.edited += other.edited
        for name, report in other.evaluations.items():
            self.evaluations.setdefault(name, FileReport()).merge(report)
        self.empty_examples = (self.empty_examples + other.empty_examples)[:EXAMPLES]

    def to_dict(self) -> dict:
        """As JSON can hold it; `of` reads it."""
        evaluations = {name: asdict(report) for name, report in self.evaluations.items()}
        counts = {name: vars(getattr(self, name)) for name in ("records", "empty", "contaminated", "kept")}
        return {**vars(self), **counts, "filters": self.filters.to_dict(), "evaluations": evaluations}

    @classmethod
    def of(cls, values: dict) -> "Processed":
        counts = {name: Count(**values[name]) for name in ("records", "empty", "contaminated", "kept")}
        evaluations = {name: FileReport(**report) for name, report in values["evaluations"].items()}
        return cls(**{**values, **counts, "filters": FilterReport.of(values["filters"]), "evaluations": evaluations})


class Row(NamedTuple):
    """A step. dropped, left: documents. Bytes are None before there is text to measure."""

    step: str
    dropped: int
    bytes_dropped: int | None
    left: int
    bytes_left: int | None


def rows(reading: Report, processed: Processed, duplicates: SourceCounts | None = None) -> list[Row]:
    """The ledger of a source. duplicates: once they are looked for."""
    found = [Row("read", 0, None, reading.counts["read"], None)]
    for reason, count in reading.counts.items():
        if reason != "read":
            found.append(Row(reason, count, None, found[-1].left - count, None))
    found.append(Row("text", 0, 0, found[-1].left, processed.records.bytes))
    taken = [("empty", processed.empty.documents, processed.empty.bytes), ("line ends and normal form", 0, processed.cleaned)]
    taken += [(name, rule.dropped, rule.bytes_dropped) for name, rule in processed.filters.rules.items()]
    if processed.filters.lines:
        taken.append(("lines dropped by C4's rules", 0, processed.edited))
    if processed.evaluations:
        taken.append(("contaminated", processed.contaminated.documents, processed.contaminated.bytes))
    if duplicates is not None:
        taken.append(("exact duplicates", duplicates.exact, duplicates.exact_bytes))
        taken.append(("near duplicates", duplicates.near, duplicates.near_bytes))
    for step, documents, size in taken:
        found.append(Row(step, documents, size, found[-1].left - documents, found[-1].bytes_left - size))
    return found
