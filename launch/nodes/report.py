"""What one task finds out about its node: `RUN/health/rank-R.json`, written before it meets the others and again after it has."""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from llm.whole_file import write_text

FOLDER = "health"


@dataclass(frozen=True)
class Link:
    """An all-reduce between two ranks. kind: `inside` a node or `between` nodes. gbytes: per second; None: it did not end."""

    kind: str
    peer: int
    gbytes: float | None


@dataclass(frozen=True)
class Report:
    """faults: by what they are of, a sentence. facts: what has to be the same everywhere. clock: seconds since 1970 when rank 0
    called; None: it was not reached.
    """

    rank: int
    world_size: int
    host: str
    faults: dict[str, str] = field(default_factory=dict)
    facts: dict[str, str] = field(default_factory=dict)
    clock: float | None = None
    links: list[Link] = field(default_factory=list)

    def write(self, run: Path) -> None:
        write_text(run / FOLDER / f"rank-{self.rank}.json", json.dumps(asdict(self), indent=1) + "\n")


def read_reports(run: Path) -> list[Report]:
    """In the order of ranks; files that are damaged are as those that are missing."""
    found = []
    for path in (run / FOLDER).glob("rank-*.json"):
        with suppress(OSError, ValueError, TypeError, KeyError):
            values = json.loads(path.read_text())
            found.append(Report(**values | {"links": [Link(**link) for link in values["links"]]}))
    return sorted(found, key=lambda report: report.rank)
