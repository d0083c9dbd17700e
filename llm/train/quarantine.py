"""The record of what a run never reads again: `report/quarantine.jsonl`, a line per rollback, and the same in every checkpoint.

    step, why    the bad step, and what was bad, in words
    checkpoint   the step that the run went back to
    tokens       trained on until then
    rows         of the stream, first and last + 1: those of the steps in between
    stream       what their numbers mean
    suspects     by shard, the numbers of the documents that the bad step read, in runs [first, last]; where the loss of some ranks
                 was not finite, on those alone
    documents    the same of all the rows

Checkpoints hold all but the documents. A line is on the disk before the run goes on, so a kill at any moment leaves the run before
its rollback, to be made again, or behind it. A start obeys the lines of its own folder, of its checkpoint, and of the folder in
which that lies: a branch does not read what its origin has found bad.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from llm.data import Batches, Quarantine
from llm.errors import DataError
from llm.train.run_folder import RunFolder
from llm.train.world import World
from llm.whole_file import write_text

NAME = "quarantine.jsonl"
Record = dict[str, Any]
# what a checkpoint does not hold
LONG = ("suspects", "documents")


def read_records(report: Path) -> list[Record]:
    """Of a run; none where it never went back."""
    path = report / NAME
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def write_records(report: Path, records: list[Record]) -> None:
    """One rank calls it."""
    write_text(report / NAME, "".join(json.dumps(record) + "\n" for record in records), sync=True)


def merged(*sources: Iterable[Record]) -> list[Record]:
    """All records in their order, each once: of those of the same rows, one that has their documents."""
    found: dict[str, Record] = {}
    for record in (record for source in sources for record in source):
        rows = json.dumps([record["rows"], record["stream"]], sort_keys=True)
        if len(record) > len(found.get(rows, ())):
            found[rows] = record
    return list(found.values())


def short(records: list[Record]) -> list[Record]:
    """As checkpoints hold them."""
    return [{key: value for key, value in record.items() if key not in LONG} for record in records]


def known(folder: RunFolder, checkpoint: Path | None, progress: dict[str, Any], world: World) -> list[Record]:
    """All that a start from this checkpoint obeys, and its folder then holds. All ranks call it together."""
    origin = [] if checkpoint is None else read_records(RunFolder(checkpoint.parents[1]).report)
    own = read_records(folder.report)
    # as the first rank reads it: the same on all, also while it writes
    records = world.gather(merged(progress.get("quarantine", ()), origin, own))[0]
    if world.first and records != own:
        write_records(folder.report, records)
    return records


def quarantine_of(records: list[Record], stream: dict[str, Any]) -> Quarantine:
    """The rows that a stream of this identity leaves out."""
    return Quarantine((record["rows"][0], record["rows"][1]) for record in records if record["stream"] == stream)


def documents_of(batches: Batches, first: int, last: int, world: World, tells: bool = True) -> dict[str, list[list[int]]]:
    """By shard, runs [first, last] of the documents in the steps of rows [first, last), each rank telling of those that it reads.
    All ranks call it together. tells: whether this one does.
    """
    found: dict[str, set[int]] = {}
    for low in range(first, last if tells else first, batches.batch):
        # an index that cannot be read must not stop a run that only names what is in it
        with suppress(DataError):
            for shard, documents in batches.stream.documents(batches.mine(np.arange(low, low + batches.batch))).items():
                found.setdefault(shard, set()).update(documents)
    of_all: dict[str, set[int]] = {}
    for part in world.gather(found):
        for shard, documents in part.items():
            of_all.setdefault(shard, set()).update(documents)
    return {shard: runs(of_all[shard]) for shard in sorted(of_all)}


def runs(numbers: set[int]) -> list[list[int]]:
    """[first, last] of each run of numbers that follow one another."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return found


def said(records: list[Record]) -> list[str]:
    """A sentence for each."""
    return [
        f"rows {record['rows'][0]} to {record['rows'][1] - 1} are in quarantine since step {record['step']}, from which the run "
        f"went back to step {record['checkpoint']}: {record['why']}"
        for record in records
    ]
