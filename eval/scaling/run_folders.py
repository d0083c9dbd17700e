"""Rows of a table from a folder of runs: sizes, tokens and FLOPs from configs, phase by phase; loss and hours from records.

A run counts once, at its end: losses on the way there belong to a learning rate that has not come down yet.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llm.cost import model_cost
from llm.data import DataConfig
from llm.errors import BraidError, DataError
from llm.train.config import RunConfig
from llm.train.metrics import read_metrics
from llm.train.phases import Phase, phases_of
from llm.train.run_folder import RunFolder
from llm.train.teacher import flops_per_token


@dataclass(frozen=True)
class FolderConfig:
    """loss: which of the run's. embeddings: whether they count as parameters. accelerators: of each run, whose hours add up."""

    loss: Literal["validation", "training"] = "validation"
    embeddings: bool = True
    accelerators: int = 1


def read_runs(folder: Path, config: FolderConfig) -> tuple[list[dict[str, Any]], list[str]]:
    """A row per finished run under `folder`, and what must be said of them. Raises DataError where none is finished."""
    rows, said, datasets = [], [], set()
    key = "validation_loss" if config.loss == "validation" else "loss"
    for path in sorted(path.parent for path in folder.glob("*/config.yaml")):
        run = RunFolder(path).read_config()
        records = read_metrics(RunFolder(path))
        last = records[-1] if records else {"step": 0}
        if last["step"] < run.train.steps:
            said.append(f"{path} is left out: it ended at step {last['step']} of {run.train.steps}")
        elif key not in last:
            said.append(f"{path} is left out: its last record has no {key}; runs.loss=training takes the training loss")
        else:
            phases = phases_of(run)
            try:
                rows.append(_row(path, phases, records, last[key], config))
            except BraidError as error:
                # its teacher's part of the FLOPs is not known
                said.append(f"{path} is left out: {error}")
                continue
            # that of the last phase, as the loss is
            datasets.add(phases[-1].config.data.manifest)
    if not rows:
        found = "; ".join(said) or "no folder in it has a config.yaml"
        raise DataError(f"{folder} holds no finished run ({found}); give a table or a folder of run folders")
    if len(datasets) > 1:
        said.append(f"the runs' losses are of several datasets ({', '.join(sorted(datasets))}), and compare only where those do")
    return rows, said


def _row(path: Path, phases: list[Phase], records: list[dict[str, Any]], loss: float, config: FolderConfig) -> dict[str, Any]:
    run = phases[-1].config
    parameters = model_cost(run.model, run.data.sequence_length).parameters
    read = [(phase.config, float((phase.last - phase.first) * phase.tokens_per_step)) for phase in phases]
    tables = run.model.vocab_size * run.model.width * (1 if run.model.tie_embeddings else 2)
    steps = [0, *(record["step"] for record in records)]
    seconds = sum(
        record["seconds_per_step"] * (step - before) for record, step, before in zip(records, steps[1:], steps, strict=False)
    )
    return {
        "params": float(parameters - (0 if config.embeddings else tables)),
        "tokens": sum(tokens for _, tokens in read),
        "loss": loss,
        "flops": sum(flops_per_token(of_phase) * tokens for of_phase, tokens in read),
        "unique": _unique(read),
        "hours": seconds / 3600 * config.accelerators,
        "family": "+".join(dict.fromkeys(run.model.layers[name].mixer.kind for name in run.model.layer_names())),
        "line": str(path),
    }


def _unique(read: list[tuple[RunConfig, float]]) -> float:
    """Different tokens among those that phases read: of each dataset no more than it has."""
    datasets = {run.data.manifest: run.data for run, _ in read}
    tokens = {name: sum(n for run, n in read if run.data.manifest == name) for name in datasets}
    return sum(min(n, _tokens_of(datasets[name])) for name, n in tokens.items())


def _tokens_of(data: DataConfig) -> float:
    """Training tokens of a dataset; without bound where it is no longer at hand."""
    try:
        manifest = data.load_manifest()
    except BraidError:
        return math.inf
    return sum(shard.tokens for shard in manifest.shards if shard.split == "train")
