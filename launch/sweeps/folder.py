"""A sweep's folder: its config, its runs, and how each is.

runs/SWEEP/  sweep.yaml    resolved
             points.json   the runs, in an order that never changes: they are tasks of a job array by it
             site.yaml, code/, array.sbatch, jobs.jsonl, logs/    on a cluster, of all runs together
             RUN/          a run folder each
             summary.md, table.csv, table.jsonl
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from launch.sweeps.config import Point, SweepConfig, points_of
from llm.config import load, to_yaml
from llm.errors import CheckpointError, ConfigError
from llm.train.exits import DONE, NAME, STOPPED, read_outcome
from llm.whole_file import write_text

RUNNING, MISSING, FINISHED, FAILED, ENDED = "under way", "missing", "done", "failed", "stopped"


@dataclass(frozen=True)
class State:
    """word: one of those above. status: how the last start ended, or None. sentence: what it said."""

    word: str
    status: int | None = None
    sentence: str = ""


@dataclass(frozen=True)
class Sweep:
    """Paths of a sweep, its config and its runs."""

    path: Path
    config: SweepConfig
    points: list[Point]

    @classmethod
    def of(cls, config: SweepConfig) -> "Sweep":
        """A new one, or one that is there and gets further runs. Raises ConfigError where a run of it would change."""
        config.check()
        path, points = Path(config.runs) / config.name, points_of(config)
        if not (path / "points.json").is_file():
            return cls(path, config, points)
        old = cls.read(path)
        if old.config.words != config.words:
            raise ConfigError(f"{path} holds a sweep with other words; choose another name, or `braid-sweep resume {path}`")
        known, new = {point.name: point for point in old.points}, {point.name: point for point in points}
        changed = next((name for name, point in known.items() if new.get(name, point) != point), None)
        if changed is not None:
            raise ConfigError(f"{path / changed} is a run with other words; choose another sweep with name=NAME")
        return cls(path, config, [*old.points, *(point for point in points if point.name not in known)])

    @classmethod
    def read(cls, path: Path) -> "Sweep":
        """Raises CheckpointError when there is none."""
        if not (path / "points.json").is_file():
            raise CheckpointError(f"{path} is no sweep: it holds no points.json; give runs/SWEEP")
        points = [Point(**point) for point in json.loads((path / "points.json").read_text())]
        return cls(path, load(SweepConfig, [str(path / "sweep.yaml")], {}), points)

    def write(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / "sweep.yaml", to_yaml(self.config))
        write_text(self.path / "points.json", json.dumps([asdict(point) for point in self.points], indent=1) + "\n")

    def run(self, point: Point) -> Path:
        return self.path / point.name

    def words(self, point: Point) -> list[str]:
        """All of a run."""
        return [*self.config.words, *point.words, f"name={point.name}", f"runs={self.path}"]

    def state(self, point: Point, active: bool = False) -> State:
        """active: it is in a queue."""
        outcome = read_outcome(self.run(point) / NAME)
        if outcome is None:
            return State(RUNNING if active else MISSING)
        if outcome.status == DONE:
            return State(FINISHED, DONE, outcome.sentence)
        if active:
            return State(RUNNING, outcome.status, outcome.sentence)
        if outcome.status is None:
            return State(FAILED, None, "its last start ended without a word, or never was")
        return State(ENDED if outcome.status == STOPPED else FAILED, outcome.status, outcome.sentence)
