"""What tests of readers share."""

import json

from data_prep.clean import Report
from data_prep.readers import ReadLog, Record

Dropped = list[tuple[str, str]]


def read(reader) -> tuple[dict[str, str], Dropped]:
    """(text by id, (reason, place) of what was dropped), after the law that they add up to what was read."""
    records, dropped, _ = read_all(reader)
    return {record.id: record.text for record in records}, dropped


def read_all(reader) -> tuple[list[Record], Dropped, Report]:
    reader.check()
    report, dropped = Report(), []
    records = list(reader.records(ReadLog("s", report, lambda reason, place: dropped.append((reason, place)))))
    assert len({record.id for record in records}) == len(records)
    drops = sum(count for reason, count in report.counts.items() if reason != "read")
    assert report.counts["read"] == len(records) + drops
    assert set(report.examples) == {reason for reason, _ in dropped}
    return records, dropped, report


def lines(*records: object) -> bytes:
    return b"".join(r if isinstance(r, bytes) else json.dumps(r).encode() + b"\n" for r in records)


GOOD = lines({"text": "one"}, {"text": "two"})
