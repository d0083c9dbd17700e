"""Rows of a table from a folder of runs: sizes and FLOPs from configs (llm/cost.py), tokens, loss and hours from records.

A run counts once, at its end: losses on the way there belong to a learning rate that has not come down yet.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from llm.cost import model_cost
from llm.errors import BraidError, DataError
from llm.train.config import RunConfig
from llm.train.metrics import read_metrics
from llm.train.run_folder import RunFolder

BACKWARD_AND_FORWARD = 3


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
            rows.append(_row(path, run, records, last[key], config))
            datasets.add(run.data.manifest)
    if not rows:
        found = "; ".join(said) or "no folder in it has a config.yaml"
        raise DataError(f"{folder} holds no finished run ({found}); give a table or a folder of run folders")
    if len(datasets) > 1:
        said.append(f"the runs' losses are of several datasets ({', '.join(sorted(datasets))}), and compare only where those do")
    return rows, said


def _row(path: Path, run: RunConfig, records: list[dict[str, Any]], loss: float, config: FolderConfig) -> dict[str, Any]:
    context, tokens = run.data.sequence_length, float(records[-1]["tokens"])
    cost = model_cost(run.model, context)
    tables = run.model.vocab_size * run.model.width * (1 if run.model.tie_embeddings else 2)
    steps = [0, *(record["step"] for record in records)]
    seconds = sum(
        record["seconds_per_step"] * (step - before) for record, step, before in zip(records, steps[1:], steps, strict=False)
    )
    return {
        "params": float(cost.parameters - (0 if config.embeddings else tables)),
        "tokens": tokens,
        "loss": loss,
        "flops": BACKWARD_AND_FORWARD * cost.flops * tokens,
        "unique": min(tokens, _tokens_of(run) or tokens),
        "hours": seconds / 3600 * config.accelerators,
        "family": "+".join(dict.fromkeys(run.model.layers[name].mixer.kind for name in run.model.layer_names())),
        "line": str(path),
    }


def _tokens_of(run: RunConfig) -> int | None:
    """Training tokens of its dataset; None where that is no longer at hand."""
    try:
        manifest = run.data.load_manifest()
    except BraidError:
        return None
    return sum(shard.tokens for shard in manifest.shards if shard.split == "train")
