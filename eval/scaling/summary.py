"""The summary of a study, for people: Markdown tables of exponents and optima, verdicts, cautions, the plan."""

from collections.abc import Iterable

import numpy as np

from eval.scaling.holdout import HoldOut
from eval.scaling.intervals import Interval
from eval.scaling.ladder import Rung, short
from eval.scaling.study import FamilyStudy, Study


def summary(study: Study) -> str:
    lines = [
        f"# Scaling of {', '.join(study.tables)}",
        "",
        f"In brackets: {study.config.level:.0%} intervals, of forms by profile likelihood, of approaches by redrawn noise.",
    ]
    for name, family in study.families.items():
        lines += ["", *_family(name, family, study)]
    if study.comparisons:
        lines += ["", "## Families compared", "", *(f"- {each.verdict}" for each in study.comparisons)]
    for name, rungs in study.plan.items():
        lines += ["", f"## Next runs of {name}", "", *_plan(rungs)]
    return "\n".join([*lines, "", *_minded(study.cautions)]).rstrip() + "\n"


def _family(name: str, family: FamilyStudy, study: Study) -> list[str]:
    runs = family.runs
    sizes = f"{short(runs.params.min())} to {short(runs.params.max())} parameters"
    flops = f"{runs.flops.min():.3g} to {runs.flops.max():.3g} FLOPs"
    lines = [f"## {name}: {len(runs)} runs, {sizes}, {flops}", "", *_table(family, study), "", *_forms(family)]
    for cost, (N, D) in family.constrained.items():
        lines.append(f"- from {short(study.config.unique or 0)} unique tokens with {cost:.3g} FLOPs: N {short(N)}, D {short(D)}")
    return [*lines, "", *_minded(family.cautions)]


def _minded(cautions: Iterable[str]) -> list[str]:
    return [f"- **Mind**: {sentence}" for sentence in cautions]


def _table(family: FamilyStudy, study: Study) -> list[str]:
    """Exponents and optima: a row per approach and form."""
    heads = [f"{what} at {cost:.3g}" for cost in study.targets for what in ("N", "D", "loss")]
    lines = [f"| | N ~ C^ | D ~ C^ | {' | '.join(heads)} |", "|---|" + "--:|" * (2 + len(heads))]
    level = study.config.level
    for name, found in family.optima.items():
        if isinstance(found, str):
            cells = [found, *[""] * (1 + len(heads))]
        else:
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
    """Each form's parameters, noise, starts and hold-out."""
    lines = []
    for name, form in family.forms.items():
        fit = form.fit
        values = ", ".join(f"{key} {_cell(form.profile[key])}" for key in fit.values)
        starts = f"{fit.reached:.0%} of {fit.starts} starts at the optimum"
        lines.append(f"- **{name}**: {values}; noise {fit.noise:.2%}; {starts}; {_held_out(form.hold_out)}")
    return lines


def _held_out(found: HoldOut | str) -> str:
    if isinstance(found, str):
        return found
    return (
        f"hold-out of the {found.held_out} runs of largest compute, up to {found.compute_ratio:.3g} times the others': "
        f"mean error {found.mean_size:.2%}, bias {found.mean:+.2%}, largest {found.largest:+.2%}"
    )


def _plan(rungs: list[Rung]) -> list[str]:
    lines = ["| run | parameters | tokens | FLOPs | predicted loss |", "|---|--:|--:|--:|--:|"]
    return lines + [f"| {r.name} | {short(r.params)} | {short(r.tokens)} | {r.flops:.3g} | {r.loss:.4f} |" for r in rungs]


def _cell(found: Interval, large: bool = False) -> str:
    return f"{_number(found.value, large)} ({_number(found.low, large)} to {_number(found.high, large)})"


def _number(value: float, large: bool) -> str:
    if not np.isfinite(value):
        return "?" if np.isnan(value) else "-∞" if value < 0 else "∞"
    return short(value) if large else f"{value:.4g}"
