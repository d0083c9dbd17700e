"""What is evaluated: a model, the dataset it was trained on if that is known, and where its reports go."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from eval.models.language_model import LanguageModel
from eval.world import Done, agreed
from llm.data import DataConfig, Manifest
from llm.errors import ConfigError, DataError
from llm.train.world import World


@dataclass(frozen=True)
class Trained:
    """How a run's model was trained: its settings, and sequences seen so far in the order of the seed."""

    data: DataConfig
    seed: int
    batch: int
    consumed: int


class Pace(Protocol):
    """rounds: calls that all ranks make when this one has `mine`. check_time: ends an evaluation on all ranks whose time is up."""

    def rounds(self, mine: int) -> int: ...

    def check_time(self) -> None: ...


@dataclass(frozen=True)
class Subject:
    """A loaded model. dataset: that it was trained on, if known. trained: of our own runs. origin: for reports. pace: where each
    call of the model is one of all ranks, what keeps them in step.
    """

    name: str
    model: LanguageModel
    report: Path
    origin: dict[str, Any]
    world: World
    dataset: DataConfig | None = None
    trained: Trained | None = None
    pace: Pace | None = None

    def manifest(self, dataset: str | None = None) -> Manifest:
        """A prepared dataset, or the one that the model was trained on. Raises DataError, ConfigError."""
        if dataset is not None:
            return Manifest.load(dataset)
        if self.dataset is None:
            raise ConfigError(f"{self.name} does not say what it was trained on; name the text with text=PATH or dataset=FOLDER")
        manifest = self.dataset.load_manifest()
        if self.trained is not None and self.origin["tokenizer"] != manifest.tokenizer.sha256:
            raise DataError(
                f"the tokenizer of {self.origin['model']} (sha256 {self.origin['tokenizer'][:12]}) is not that of "
                f"{self.dataset.manifest} ({manifest.tokenizer.sha256[:12]}): ids would mean other text; "
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
        """A bar over `total` units on the first rank's terminal; gives the function that moves it on."""
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=Console(stderr=True), transient=True, disable=not self.world.first) as bars:
            task = bars.add_task(f"{self.name}: {name}", total=total)
            yield lambda n: bars.advance(task, n)
