"""The report of a study: scaling.json with every figure, summary.md for people, pictures, and the plan as YAML."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray
from rich.console import Console
from rich.markdown import Markdown

from eval.scaling import plots
from eval.scaling.ladder import write_ladder
from eval.scaling.power_law import Optima
from eval.scaling.study import FamilyStudy, FormStudy, Study
from eval.scaling.summary import summary
from llm.errors import ConfigError
from llm.train.run_folder import versions
from llm.whole_file import write_text


def place(out: str | None, table: Path) -> Path:
    """The report's folder, made: `out`, or TABLE-scaling beside the table. Raises ConfigError."""
    folder = Path(out) if out else table.parent / f"{table.stem or 'runs'}-scaling"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out ({folder}) cannot be made ({error.strerror}); choose another with out=FOLDER") from None
    return folder


def write(study: Study, folder: Path) -> dict[str, Any]:
    """Write everything, print the summary, and return the report."""
    report = _plain(tree(study))
    report["pictures"] = plots.draw(study, folder)
    for name, rungs in study.plan.items():
        write_ladder(
            rungs, study.config.ladder, folder / ("plan.yaml" if len(study.plan) == 1 else f"plan-{plots.as_file(name)}.yaml")
        )
    write_text(folder / "scaling.json", json.dumps({**report, "versions": versions()}, indent=1) + "\n")
    text = summary(study)
    write_text(folder / "summary.md", text)
    console = Console()
    console.print(Markdown(text))
    console.print(str(folder / "scaling.json"), highlight=False, soft_wrap=True)
    return report


def tree(study: Study) -> dict[str, Any]:
    return {
        "task": "scaling",
        "tables": study.tables,
        "settings": asdict(study.config),
        "targets": study.targets,
        "families": {name: _family(each, study) for name, each in study.families.items()},
        "comparisons": [asdict(each) for each in study.comparisons],
        "plan": {name: [asdict(rung) for rung in rungs] for name, rungs in study.plan.items()},
        "cautions": study.cautions,
    }


def _family(family: FamilyStudy, study: Study) -> dict[str, Any]:
    runs = family.runs
    return {
        "runs": len(runs),
        "ranges": {name: [getattr(runs, name).min(), getattr(runs, name).max()] for name in ("params", "tokens", "flops", "loss")},
        "flops": {"k": np.exp(runs.cost.log_k), "q": runs.cost.q, "worst": runs.cost.worst},
        "forms": {name: _form(each) for name, each in family.forms.items()},
        **{name: _optima(optima, study) for name, optima in family.optima.items()},
        "from_unique_tokens": {f"{cost:.3g}": {"N": N, "D": D} for cost, (N, D) in family.constrained.items()},
        "cautions": family.cautions,
    }


def _form(form: FormStudy) -> dict[str, Any]:
    fit = form.fit
    return {
        "values": fit.values,
        "objective": fit.objective,
        "starts": fit.starts,
        "reached": fit.reached,
        "noise": fit.noise,
        "profile": {name: asdict(found) for name, found in form.profile.items()},
        "bootstrap": {name: asdict(found) for name, found in form.resampled.items()},
        "hold_out": form.hold_out if isinstance(form.hold_out, str) else asdict(form.hold_out),
    }


def _optima(optima: Optima | str, study: Study) -> Any:
    if isinstance(optima, str):
        return optima
    level = study.config.level
    return {
        "N_exponent": asdict(optima.N_exponent(level)),
        "D_exponent": asdict(optima.D_exponent(level)),
        **{f"N_opt@{cost:.3g}": asdict(optima.N_opt(cost, level)) for cost in study.targets},
        **{f"D_opt@{cost:.3g}": asdict(optima.D_opt(cost, level)) for cost in study.targets},
    }


def _plain(value: Any) -> Any:
    """Plain values for JSON; what is not finite is null."""
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(held) for key, held in value.items()}
    if isinstance(value, list | tuple | ndarray):
        return [_plain(held) for held in value]
    if hasattr(value, "__dataclass_fields__"):
        return _plain(asdict(value))
    return value.item() if isinstance(value, np.generic) else value
