"""The report of a study: scaling.json with every figure, summary.md for people, pictures, and the plan as YAML."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markdown import Markdown

from eval.scaling import plots
from eval.scaling.intervals import Interval
from eval.scaling.ladder import short, write_ladder
from eval.scaling.power_law import Optima
from eval.scaling.study import FamilyStudy, FormStudy, Study, as_tree
from llm.train.run_folder import versions, write_text


def write(study: Study) -> dict[str, Any]:
    """Write everything, print the summary, and return the report."""
    folder = Path(study.config.out) if study.config.out else _beside(Path(study.tables[0]))
    folder.mkdir(parents=True, exist_ok=True)
    report = as_tree(tree(study))
    report["pictures"] = plots.draw(study, folder)
    for name, rungs in study.plan.items():
        write_ladder(rungs, study.config.ladder, folder / ("plan.yaml" if len(study.plan) == 1 else f"plan-{name}.yaml"))
    write_text(folder / "scaling.json", json.dumps({**report, "versions": versions()}, indent=1) + "\n")
    text = summary(study)
    write_text(folder / "summary.md", text)
    console = Console()
    console.print(Markdown(text))
    console.print(str(folder / "scaling.json"), highlight=False, soft_wrap=True)
    return report


def _beside(table: Path) -> Path:
    return table.parent / f"{table.stem or 'runs'}-scaling"


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


def summary(study: Study) -> str:
    """Markdown: exponents and optima by approach, the forms' parameters, comparisons, cautions, the plan."""
    level = f"{study.config.level:.0%}"
    lines = [
        f"# Scaling of {', '.join(study.tables)}",
        "",
        f"Intervals are {level}, by profile likelihood for forms and by redrawn noise for approaches 1 and 2.",
    ]
    for name, family in study.families.items():
        runs = family.runs
        sizes = f"{short(runs.params.min())} to {short(runs.params.max())} parameters, {runs.flops.min():.3g} to {runs.flops.max():.3g} FLOPs"
        lines += ["", f"## {name}: {len(runs)} runs, {sizes}", "", *_exponents(family, study), "", *_forms(family)]
        lines += [
            f"- from {study.config.unique:.3g} unique tokens, {cost:.3g} FLOPs: {short(N)} parameters, {short(D)} tokens"
            for cost, (N, D) in family.constrained.items()
        ]
        lines += ["", *(f"- **Mind**: {sentence}" for sentence in family.cautions)]
    if study.comparisons:
        lines += ["", "## Families compared", "", *(f"- {each.verdict}" for each in study.comparisons)]
    for name, rungs in study.plan.items():
        lines += [
            "",
            f"## Next runs of {name}",
            "",
            "| run | parameters | tokens | FLOPs | predicted loss |",
            "|---|--:|--:|--:|--:|",
        ]
        lines += [f"| {r.name} | {short(r.params)} | {short(r.tokens)} | {r.flops:.3g} | {r.loss:.4f} |" for r in rungs]
    lines += ["", *(f"- **Mind**: {sentence}" for sentence in study.cautions)]
    return "\n".join(lines).rstrip() + "\n"


def _exponents(family: FamilyStudy, study: Study) -> list[str]:
    heads = [f"{what} at {cost:.3g}" for cost in study.targets for what in ("N", "D", "loss")]
    lines = [f"| | N ~ C^ | D ~ C^ | {' | '.join(heads)} |", "|---|" + "--:|" * (2 + len(heads))]
    level = study.config.level
    for name, found in family.optima.items():
        if isinstance(found, str):
            lines.append(f"| {name} | {found} |" + " |" * (1 + len(heads)))
            continue
        cells = [_cell(found.N_exponent(level)), _cell(found.D_exponent(level))]
        for cost in study.targets:
            cells += [_cell(found.N_opt(cost, level), True), _cell(found.D_opt(cost, level), True), "-"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    for name, form in family.forms.items():
        cells = [_cell(form.profile[key]) for key in ("N_exponent", "D_exponent")]
        for cost in study.targets:
            cells += [_cell(form.profile[f"{key}@{cost:.3g}"], key != "loss") for key in ("N_opt", "D_opt", "loss")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _forms(family: FamilyStudy) -> list[str]:
    lines = []
    for name, form in family.forms.items():
        values = ", ".join(f"{key} {_cell(form.profile[key])}" for key in form.fit.values)
        held = form.hold_out
        tested = (
            held
            if isinstance(held, str)
            else (
                f"{held.held_out} runs of up to {held.compute_ratio:.3g} times the compute predicted with a mean error of {held.mean_size:.2%} "
                f"(bias {held.mean:+.2%}, largest {held.largest:+.2%})"
            )
        )
        lines.append(
            f"- **{name}**: {values}; noise {form.fit.noise:.2%}; {form.fit.reached:.0%} of {form.fit.starts} starts at the optimum; {tested}"
        )
    return lines


def _cell(found: Interval, big: bool = False) -> str:
    form = short if big else (lambda value: f"{value:.4g}")
    value, low, high = (form(v) if np.isfinite(v) else "∞" if v > 0 else "?" for v in (found.value, found.low, found.high))
    return f"{value} ({low} to {high})"
