"""What a sweep is: words that all runs share, and what differs from run to run."""

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import MISSING, OmegaConf

from llm.errors import ConfigError

# an axis of the grid whose values are whole files
FILES = "files"


@dataclass(frozen=True)
class Point:
    """A run. words: FILE.yaml... key.path=value..., beyond those of all runs."""

    name: str
    words: list[str]


@dataclass(frozen=True)
class SweepConfig:
    """`runs`/`name` is the sweep's folder, and in it each run has one.

    words: of all runs, FILE.yaml... key.path=value.... grid: values of settings, of which every combination is a run; the axis
    `files` has YAML files as values. points: further runs, each {name, words}. plan: the plan.yaml of `braid-eval scaling`, whose
    runs are points. throttle: most runs at a time on a cluster; 0: all. evaluate: what each run is evaluated on when it has ended.
    launcher: without a cluster, what stands before launch/pretrain.py, such as [deepspeed, --num_accelerators, "8"].
    """

    name: str = MISSING
    runs: str = "runs"
    words: list[str] = field(default_factory=list)
    grid: dict[str, Any] = field(default_factory=dict)
    points: list[Any] = field(default_factory=list)
    plan: str | None = None
    throttle: int = 0
    evaluate: list[str] = field(default_factory=list)
    launcher: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raises ConfigError."""
        if not self.name or "/" in self.name or self.name.startswith("."):
            raise ConfigError(f"name ({self.name!r}) names the sweep's folder; use letters, digits, dashes")
        if self.throttle < 0:
            raise ConfigError(f"throttle ({self.throttle}) must not be negative; 0 starts all runs at once")
        for axis, values in self.grid.items():
            if not isinstance(values, list) or not values:
                raise ConfigError(f"grid.{axis} ({values}) must list values; write grid.{axis}=[...]")
        for word in (word for word in self.words if word.startswith(("name=", "runs="))):
            raise ConfigError(f"words ({word}) is for the sweep to say, as each run has a folder of its own; remove it")


def points_of(config: SweepConfig) -> list[Point]:
    """All runs, the grid's first. Raises ConfigError."""
    found = [*_of_grid(config.grid), *(_point(given, "points") for given in config.points), *_of_plan(config.plan)]
    if not found:
        raise ConfigError(f"sweep {config.name} has no runs; give grid, points or plan")
    names = [point.name for point in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"sweep {config.name} has two runs called {twice}; name points apart")
    return found


def _of_grid(grid: dict[str, Any]) -> Iterator[Point]:
    if not grid:
        return
    for values in itertools.product(*grid.values()):
        chosen = dict(zip(grid, values, strict=True))
        words = [str(value) if axis == FILES else f"{axis}={_written(value)}" for axis, value in chosen.items()]
        yield Point("-".join(_short(axis, value) for axis, value in chosen.items()), words)


def _short(axis: str, value: Any) -> str:
    text = Path(str(value)).stem if axis == FILES else f"{axis.rpartition('.')[2]}{_written(value)}"
    return re.sub(r"[^A-Za-z0-9.+_]+", "_", text).strip("_")


def _written(value: Any) -> str:
    """As a word of the command line has it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"[{','.join(map(_written, value))}]" if isinstance(value, list) else str(value)


def _of_plan(path: str | None) -> list[Point]:
    if path is None:
        return []
    if not Path(path).is_file():
        raise ConfigError(f"plan ({path}) does not exist; `braid-eval scaling TABLE ladder.budget=FLOPS` writes one")
    return [_point(given, f"plan {path}") for given in OmegaConf.to_container(OmegaConf.load(path))["runs"]]  # type: ignore[index]


def _point(given: Any, where: str) -> Point:
    name, words = (given.get(key) if isinstance(given, dict) else None for key in ("name", "words"))
    if not name or not words:
        raise ConfigError(f"{where} ({given}) must be runs with a name and words; write {{name: NAME, words: [key.path=value]}}")
    own = [str(word) for word in words if not str(word).startswith(("name=", "runs="))]
    return Point(re.sub(r"[^A-Za-z0-9.+_-]+", "_", str(name)), own)
