"""What is evaluated: a model, the dataset it was trained on if that is known, and where its reports go."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from eval.models.language_model import LanguageModel
from eval.world import Done, agreed
from llm.data import DataConfig, Manifest
from llm.errors import ConfigError, DataError
from llm.train.phases import Phase
from llm.train.world import World

# between lines of progress in a log
SECONDS = 60


@dataclass(frozen=True)
class Trained:
    """What a run's model has read: the phases that had begun, the row at which each began, the one to which the last has come, all
    counted through the run (llm/train/phases.py); and the record of rows left out (llm/train/quarantine.py).
    """

    phases: Sequence[Phase]
    began: Sequence[int]
    consumed: int
    quarantine: list[dict[str, Any]] = field(default_factory=list)


class Pace(Protocol):
    """rounds: calls that all ranks make when this one has `mine`. check_time: ends an evaluation on all ranks whose time is up."""

    def rounds(self, mine: int) -> int: ...

    def check_time(self) -> None: ...


@dataclass(frozen=True)
class Subject:
    """A loaded model. dataset: that it was trained on, if known. trained: of our own runs. origin: for reports. pace: where each
    call of the model is one of all ranks, what keeps them in step. split: whether all ranks read each text together.
    """

    name: str
    model: LanguageModel
    report: Path
    origin: dict[str, Any]
    world: World
    dataset: DataConfig | None = None
    trained: Trained | None = None
    pace: Pace | None = None
    split: bool = False

    def manifest(self, dataset: str | None = None) -> Manifest:
        """A prepared dataset, or the one that the model was trained on. Raises DataError, ConfigError."""
        if dataset is not None:
            return Manifest.load(dataset)
        if self.dataset is None:
            raise ConfigError(f"{self.name} does not say what it was trained on; name the text with text=PATH or dataset=FOLDER")
        return self.dataset.load_manifest() if self.trained is None else self.of_run(self.dataset)

    def of_run(self, data: DataConfig) -> Manifest:
        """A dataset that the run read. Raises DataError, ConfigError."""
        manifest = data.load_manifest()
        if self.origin["tokenizer"] != manifest.tokenizer.sha256:
            raise DataError(
                f"the tokenizer of {self.origin['model']} (sha256 {self.origin['tokenizer'][:12]}) is not that of "
                f"{data.manifest} ({manifest.tokenizer.sha256[:12]}): ids would mean other text; "
                "evaluate with the dataset that the run was trained on, or name a text with text=PATH"
            )
        return manifest

    def alone(self) -> "Subject":
        """As one rank by itself sees it."""
        return replace(self, world=World(0, 1, self.world.device))

    def agreed(self, do: Callable[[], Done]) -> Done:
        """`agreed` by the subject's ranks."""
        return agreed(self.world, do)

    @contextmanager
    def progress(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """Gives the function that moves on a bar over `total` units, on the first rank; in a log file, a line every minute."""
        console = Console(stderr=True)
        if not self.world.first:
            yield lambda n: None
        elif not console.is_terminal:
            yield Lines(f"{self.name}: {name}", total).advance
        else:
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            with Progress(*columns, console=console, transient=True) as bars:
                task = bars.add_task(f"{self.name}: {name}", total=total)
                yield lambda n: bars.advance(task, n)


class Lines:
    """Progress as lines, `SECONDS` apart at least."""

    def __init__(self, name: str, total: int):
        self.name, self.total, self.done, self.said = name, total, 0, time.monotonic()

    def advance(self, n: int) -> None:
        self.done += n
        if time.monotonic() - self.said >= SECONDS:
            self.said = time.monotonic()
            print(f"{self.name} {self.done:,}/{self.total:,}", file=sys.stderr, flush=True)
