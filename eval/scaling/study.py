"""The whole study of a table of runs, family by family: fit, bound, check, compare, plan."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy import ndarray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from eval.scaling import cautions
from eval.scaling.compare import Comparison, at_equal_cost, in_hours
from eval.scaling.config import ScalingConfig
from eval.scaling.envelope import envelope
from eval.scaling.fit import Fit, fit
from eval.scaling.forms import FORMS, DataConstrained
from eval.scaling.holdout import HoldOut, hold_out
from eval.scaling.intervals import Interval, bootstrap, percentiles, profile, quantities
from eval.scaling.isoflop import isoflop
from eval.scaling.ladder import Rung, ladder
from eval.scaling.power_law import Optima
from eval.scaling.table import Runs
from llm.errors import ConfigError, DataError

# the form that families are compared and ladders are planned with
MAIN = "chinchilla"


@dataclass(frozen=True)
class FormStudy:
    """profile, resampled: intervals of each quantity. vectors: resampled parameters, [resamples, P]."""

    fit: Fit
    profile: dict[str, Interval]
    resampled: dict[str, Interval]
    vectors: ndarray
    hold_out: HoldOut | str


@dataclass(frozen=True)
class FamilyStudy:
    """optima: of approaches 1 and 2, or why there are none. constrained: optima from `unique` tokens, by target."""

    runs: Runs
    forms: dict[str, FormStudy]
    optima: dict[str, Optima | str]
    constrained: dict[float, tuple[float, float]]
    cautions: list[str]


@dataclass(frozen=True)
class Study:
    tables: list[str]
    config: ScalingConfig
    families: dict[str, FamilyStudy]
    comparisons: list[Comparison]
    plan: dict[str, list[Rung]]
    targets: list[float]
    cautions: list[str]


def study(tables: list[str], runs: Runs, config: ScalingConfig, left_out: Sequence[str] = ()) -> Study:
    """Everything that is found, family by family. Raises ConfigError, DataError."""
    targets = config.targets or [10 * float(runs.flops.max())]
    parts = {name: runs[runs.family == name] for name in runs.families}
    forms = {name: config.forms or _identified(part) for name, part in parts.items()}
    _check(forms, config)
    families: dict[str, FamilyStudy] = {}
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("scaling", total=sum(len(names) + 1 for names in forms.values()))
        for name, part in parts.items():
            families[name] = _family(part, forms[name], targets, config, lambda: bars.advance(task))
    comparisons = compare(families, targets, config)
    plan = {}
    if config.ladder.budget is not None:
        plan = {name: ladder(each.forms[MAIN].fit, config.ladder) for name, each in families.items()}
    return Study(tables, config, families, comparisons, plan, targets, list(left_out))


def _identified(runs: Runs) -> list[str]:
    """The forms that have enough runs; repetition's only where tokens were repeated."""
    repeats = bool((runs.unique < 0.99 * runs.tokens).any())
    return [
        name
        for name, form in FORMS.items()
        if name == MAIN or (len(runs) >= len(form.parameters) + 2 and (repeats or name != DataConstrained.name))
    ]


def _check(forms: Mapping[str, Sequence[str]], config: ScalingConfig) -> None:
    """What settings ask for and the table cannot give, before anything is fitted."""
    for family, names in forms.items():
        if config.unique is not None and DataConstrained.name not in names:
            raise DataError(
                f"unique ({config.unique:g}) needs the form {DataConstrained.name}, and that runs of {family!r} which repeat "
                "tokens; give a column unique or epochs, or leave unique out"
            )
        if MAIN not in names and (config.ladder.budget is not None or len(forms) > 1):
            raise ConfigError(f"forms ({names}) must hold {MAIN}, which plans and comparisons are made with")


def _family(
    runs: Runs, names: Sequence[str], targets: list[float], config: ScalingConfig, advance: Callable[[], None]
) -> FamilyStudy:
    said = cautions.of_runs(runs)
    main = fit(FORMS[MAIN], runs, config.fit)
    outlying = main.outliers(config.outliers_beyond)
    if config.outliers == "drop" and outlying.any():
        said.append(f"{outlying.sum()} outliers are left out: {', '.join(map(str, runs.line[outlying]))}")
        runs = runs[~outlying]
        main = fit(FORMS[MAIN], runs, config.fit)
    forms = {}
    for name in names:
        found = main if name == MAIN else fit(FORMS[name], runs, config.fit)
        forms[name] = _form(found, targets, config)
        said += cautions.of_fit(found, forms[name].profile, config.outliers_beyond)
        advance()
    for cost in targets:
        said += cautions.of_target(main, cost)
    optima = {
        "envelope": envelope(runs, runs.cost, np.log(runs.loss) - main.residual, main.noise, config.resamples, config.fit.seed),
        "isoflop": isoflop(runs, runs.cost, config.resamples, config.fit.seed),
    }
    said += [sentence for found in optima.values() if not isinstance(found, str) for sentence in found.cautions]
    advance()
    return FamilyStudy(runs, forms, optima, _constrained(forms, targets, config.unique), said)


def _form(found: Fit, targets: list[float], config: ScalingConfig) -> FormStudy:
    vectors = bootstrap(found, config.resamples, config.fit.seed)
    asked = quantities(found, targets)
    return FormStudy(
        found,
        {quantity.name: profile(found, quantity, config.level) for quantity in asked},
        {quantity.name: percentiles(found, quantity, vectors, config.level) for quantity in asked},
        vectors,
        hold_out(found.form, found.runs, config.hold_out, config.fit) if config.hold_out else "no hold-out asked for",
    )


def _constrained(forms: dict[str, FormStudy], targets: list[float], unique: float | None) -> dict[float, tuple[float, float]]:
    if unique is None:
        return {}
    found = forms[DataConstrained.name].fit
    optima = {}
    for cost in targets:
        N, D = DataConstrained().constrained_optimum(found.theta[None], float(np.log(cost)), found.law, unique)
        optima[cost] = (float(np.exp(N[0])), float(np.exp(D[0])))
    return optima


def compare(families: dict[str, FamilyStudy], targets: list[float], config: ScalingConfig) -> list[Comparison]:
    """Every pair, at the largest compute that both have reached and at the targets; where hours are known, at equal hours too."""
    found = []
    names = list(families)
    for first, second in ((a, b) for k, a in enumerate(names) for b in names[k + 1 :]):
        pair = [families[name].forms[MAIN] for name in (first, second)]
        vectors = pair[0].vectors, pair[1].vectors
        shared = min(float(each.fit.runs.flops.max()) for each in pair)
        for cost in [shared, *targets]:
            found.append(at_equal_cost(pair[0].fit, pair[1].fit, vectors, cost, "FLOPs", config.level))
        if all(np.isfinite(each.fit.runs.hours).all() for each in pair):
            cost = min(float(each.fit.runs.hours.max()) for each in pair)
            found.append(at_equal_cost(in_hours(pair[0].fit), in_hours(pair[1].fit), vectors, cost, "hours", config.level))
    return found
