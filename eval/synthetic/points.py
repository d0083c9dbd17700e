"""Runs of a table of architectures and tasks: points, worked off by several processes into a file that can be gone on with.

A point's line in the file carries a hash of all that its figures depend on; what has a line is not run again.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Generator

from eval.synthetic.task import Task
from eval.synthetic.tasks import TASKS
from eval.synthetic.training import model_of, train_and_test
from llm.errors import ConfigError, DataError
from llm.model import ModelConfig

Run = dict[str, Any]
HELD_OUT = 1024
BETWEEN_LAYERS, BEFORE_WIDTH = "+", "@"


@dataclass(frozen=True)
class Point:
    """One run: architecture `a+b` has the layers a and b, `a+b@16` at this width. mixers: of these names. changes: of the task's
    settings.
    """

    task: str
    architecture: str
    learning_rate: float
    seed: int
    mixers: dict[str, Any]
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    held_out: int = HELD_OUT

    @property
    def resolved(self) -> Task:
        _, width = parsed(self.architecture)
        return dataclasses.replace(TASKS[self.task], **self.changes | ({} if width is None else {"width": width}))

    def model(self) -> ModelConfig:
        """Raises ConfigError."""
        return model_of(self.resolved, self.mixers, parsed(self.architecture)[0])

    def check(self) -> None:
        """Raises ConfigError: a model that cannot be, a size that the task has no sequence of."""
        self.model()
        task = self.resolved
        for size in (*task.train, *task.tests):
            task.sample(1, size, Generator())

    def settings(self) -> dict[str, Any]:
        """All that the figures depend on, as JSON has it."""
        functions = ("sample", "tested")
        task = {f.name: getattr(self.resolved, f.name) for f in dataclasses.fields(Task) if f.name not in functions}
        own = {name: getattr(self, name) for name in ("task", "architecture", "learning_rate", "seed", "held_out")}
        return json.loads(json.dumps({**own, "settings": task, "model": dataclasses.asdict(self.model())}))

    def key(self) -> str:
        return hashlib.sha256(json.dumps(self.settings(), sort_keys=True).encode()).hexdigest()[:16]


def parsed(architecture: str) -> tuple[list[str], int | None]:
    """(names of layers, width if given). Raises ConfigError."""
    names, at, width = architecture.partition(BEFORE_WIDTH)
    if at and not (width.isdecimal() and int(width)):
        raise ConfigError(f"layers ({architecture}) ends in no width; write NAME+NAME{BEFORE_WIDTH}64, or leave {at}{width} out")
    return names.split(BETWEEN_LAYERS), int(width) if at else None


def run_point(point: Point, threads: int = 1) -> Run:
    torch.set_num_threads(threads)
    found = train_and_test(point.resolved, point.model(), point.learning_rate, point.seed, point.held_out)
    return {"key": point.key(), **point.settings(), **found}


def work_off(points: Sequence[Point], file: Path, processes: int, threads: int, say: Callable[[str], None] = print) -> list[Run]:
    """The run of every point, in their order; each is added to the file when it ends. Raises DataError: a damaged file."""
    keys = [point.key() for point in points]
    done = {run["key"]: run for run in read_runs(file)}
    todo = [point for key, point in zip(keys, points, strict=True) if key not in done]
    say(f"{file}: {len(points) - len(todo)} of {len(points)} runs are there")
    file.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with file.open("a") as out:
        for i, run in enumerate(_runs(todo, processes, threads), 1):
            out.write(json.dumps(run) + "\n")
            out.flush()
            done[run["key"]] = run
            left = (time.monotonic() - started) / i * (len(todo) - i) / 60
            say(f"[{i}/{len(todo)}, {left:.0f} min left] {line(run)}")
    return [done[key] for key in keys]


def read_runs(file: Path) -> list[Run]:
    """A last line that was cut off in writing is mended away. Raises DataError: another damaged line."""
    text = file.read_text() if file.exists() else ""
    whole, _, rest = text.rpartition("\n")
    if rest:
        file.write_text(whole + "\n" if whole else "")
    runs = []
    for number, words in enumerate(whole.splitlines(), 1):
        try:
            run = json.loads(words)
            run["key"], run["accuracy"]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{file}, line {number} is no run; take the line out, and its run is made again") from None
        runs.append(run)
    return runs


def _runs(points: Sequence[Point], processes: int, threads: int) -> Iterable[Run]:
    """In any order. One process runs them itself."""
    if min(processes, len(points)) <= 1:
        yield from (run_point(point, threads) for point in points)
        return
    # spawned, because a forked child inherits the threads' locks
    with get_context("spawn").Pool(min(processes, len(points))) as pool:
        yield from pool.imap_unordered(_Work(threads), points)


@dataclass(frozen=True)
class _Work:
    threads: int

    def __call__(self, point: Point) -> Run:
        return run_point(point, self.threads)


def line(run: Run) -> str:
    scores = " ".join(f"{size}: {right:.3f}" for size, right in run["accuracy"].items())
    return (
        f"{run['task']} {run['architecture']} rate {run['learning_rate']:g} seed {run['seed']}: {run['steps']} steps, "
        f"loss {run['loss_first']:.3f} -> {run['loss_last']:.4f}, validation {run['validation_loss']:.4f}; {scores}; "
        f"{run['cpu_seconds']:.0f} s"
    )
