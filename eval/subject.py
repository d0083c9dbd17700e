"""What is evaluated: a model with the dataset it was trained on, and where its report goes."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from llm.data import DataConfig, Manifest
from llm.data.remote import is_remote
from llm.errors import DataError
from llm.model import Decoder
from llm.train.load import load_model


@dataclass(frozen=True)
class Subject:
    """batch: sequences of a training step. consumed: those that the model has seen, in the order of `seed`. origin: for reports."""

    model: Decoder
    manifest: Manifest
    data: DataConfig
    seed: int
    batch: int
    consumed: int
    report: Path
    origin: dict[str, Any]

    @contextmanager
    def progress(self, name: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar over `total` units on the terminal; gives the function that moves it on."""
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
            task = bars.add_task(name, total=total)
            yield lambda n: bars.advance(task, n)


def load_subject(run_or_checkpoint: str | Path, device: str = "cpu") -> Subject:
    """The model of a run folder or checkpoint with its dataset. Raises CheckpointError, DataError."""
    model, config, info = load_model(run_or_checkpoint, device)
    data = replace(config.data, manifest=str(_found(config.data.manifest, info.path)))
    manifest = data.load_manifest()
    tokenizer = hashlib.sha256(info.tokenizer.read_bytes()).hexdigest()
    if tokenizer != manifest.tokenizer.sha256:
        raise DataError(
            f"the tokenizer of {info.path} (sha256 {tokenizer[:12]}) is not that of {config.data.manifest} "
            f"({manifest.tokenizer.sha256[:12]}): ids would mean other text; evaluate with the dataset that the run was trained on"
        )
    folder, batch = info.run or info.path, config.train.batch
    origin = {
        "run": config.name,
        "checkpoint": str(info.path),
        "step": info.step,
        "tokens_trained": info.tokens,
        "manifest": manifest.hash,
        "tokenizer": tokenizer,
        "device": str(device),
        "dtype": str(model.embedding.dtype).removeprefix("torch."),
    }
    return Subject(model, manifest, data, config.seed, batch, info.step * batch, folder / "report", origin)


def _found(dataset: str, checkpoint: Path) -> str | Path:
    """The dataset as the config gives it: an address, or a path from the working directory, else from a folder of the run's."""
    if is_remote(dataset):
        return dataset
    return next((base / dataset for base in (Path(), *checkpoint.parents) if (base / dataset).exists()), Path(dataset))
