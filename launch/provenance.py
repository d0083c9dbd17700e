"""Where an exported model comes from: checkpoint, data, seeds, config, evaluations, versions and commit."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llm.errors import BraidError
from llm.train.checkpoint_files import CONFIG, PROGRESS
from llm.train.config import RunConfig
from llm.train.load import CheckpointInfo
from llm.train.run_folder import RunFolder, read_config, versions


def provenance(config: RunConfig, info: CheckpointInfo, licence: str | None = None) -> dict[str, Any]:
    """What goes into training_metadata.json and the model card. What is not there any more, such as the dataset, is left out."""
    progress = json.loads((info.path / PROGRESS).read_text())
    trained = {"run": config.name, "step": info.step, "tokens_seen": info.tokens, "data": progress.get("data")}
    # of the whole run, not of its last phase alone
    whole = asdict(read_config(info.path / CONFIG))
    found = {**trained, "config": whole, "licence": licence, "exported_with": versions()}
    found["command"] = f"braid-pretrain config.yaml  # the `config` of {config.name}, written as YAML"
    if info.run is not None:
        found["trained_with"] = _read(RunFolder(info.run).versions)
        found["evaluation"] = evaluations(RunFolder(info.run).report)
    return {**found, "dataset": _dataset(config)}


def evaluations(reports: Path) -> dict[str, dict[str, float]]:
    """The figures of each report in a folder, by its name."""
    return {path.stem: figures for path in sorted(reports.glob("*.json")) if (figures := _figures(_read(path)))}


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _figures(report: Any) -> dict[str, float]:
    """The numbers of an evaluation's report, by name."""
    found = report.get("figures", report.get("results")) if isinstance(report, dict) else None
    values = {name: x.get("value") if isinstance(x, dict) else x for name, x in found.items()} if isinstance(found, dict) else {}
    return {name: float(x) for name, x in values.items() if isinstance(x, (int, float))}


def _dataset(config: RunConfig) -> dict[str, Any] | None:
    """The data card's figures of what was trained on."""
    try:
        manifest = config.data.load_manifest()
    except BraidError:
        return None
    totals = manifest.totals("train")
    sources = {name: asdict(source) for name, source in manifest.sources.items()}
    return {"manifest": manifest.hash, "tokens": totals.tokens, "documents": totals.documents, "sources": sources}
