"""Pictures of a study, PNG: one per approach and family, and the families side by side."""

import re
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.scaling.forms import Points
from eval.scaling.intervals import middle, optimal_log_loss
from eval.scaling.isoflop import budgets
from eval.scaling.power_law import Optima
from eval.scaling.study import MAIN, FamilyStudy, FormStudy, Study

FLOPS = "training FLOPs"


def draw(study: Study, folder: Path) -> list[str]:
    """Their names."""
    names = []

    def save(figure: Figure, name: str) -> None:
        figure.savefig(folder / name, dpi=110)
        names.append(name)

    for family, each in study.families.items():
        title = "" if len(study.families) == 1 else f"-{as_file(family)}"
        for approach, optima in each.optima.items():
            if isinstance(optima, Optima):
                save(approach_figure(each, optima, study.config.level), f"{approach}{title}.png")
        if MAIN in each.forms:
            save(parametric(each), f"parametric{title}.png")
        if "over_training" in each.forms:
            save(over_training(each.forms["over_training"]), f"over_training{title}.png")
        if "data_constrained" in each.forms:
            save(repetition(each.forms["data_constrained"]), f"repetition{title}.png")
    if len(study.families) > 1:
        save(families(study), "families.png")
    return names


def approach_figure(family: FamilyStudy, optima: Optima, level: float) -> Figure:
    """Left the runs with their envelope or parabolas, right the optima and the power law with its band."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    (_curves if optima.approach == "envelope" else _parabolas)(left, family, optima)
    x = np.linspace(optima.log_cost.min(), optima.log_cost.max() + np.log(10), 50)
    low, high = np.array([middle(drawn, level) for drawn in np.stack([np.ones_like(x), x], 1) @ optima.lines.T]).T
    right.fill_between(np.exp(x), np.exp(low), np.exp(high), alpha=0.25)
    right.plot(np.exp(x), np.exp(optima.line[0] + optima.line[1] * x), label=f"N ~ C^{optima.line[1]:.3f}")
    right.plot(np.exp(optima.log_cost), np.exp(optima.log_N), "k." if optima.approach == "envelope" else "ko", ms=4, label="optima")
    right.set(xscale="log", yscale="log", xlabel=FLOPS, ylabel="compute-optimal parameters")
    _finish(right)
    return figure


def _curves(axes: Axes, family: FamilyStudy, optima: Optima) -> None:
    runs = family.runs
    sizes = np.unique(runs.params)
    for k, size in enumerate(sizes):
        rows = np.flatnonzero(runs.params == size)
        rows = rows[np.argsort(runs.flops[rows])]
        axes.plot(runs.flops[rows], runs.loss[rows], ".-", color=_shade(k, len(sizes)), lw=0.8)
    axes.set(xscale="log", yscale="log", xlabel=FLOPS, ylabel="loss", title="runs of each size, dark to light: small to large")
    for edge in (optima.log_cost.min(), optima.log_cost.max()):
        axes.axvline(np.exp(edge), color="gray", ls=":", lw=0.8)
    axes.grid(alpha=0.3)


def _parabolas(axes: Axes, family: FamilyStudy, optima: Optima) -> None:
    log_loss, found = np.log(family.runs.loss), budgets(family.runs)
    for k, budget in enumerate(found):
        color = _shade(k, len(found))
        vertex, coefficients = budget.vertex(log_loss)
        x = np.linspace(budget.x.min(), budget.x.max(), 60)
        axes.plot(family.runs.params[budget.rows], family.runs.loss[budget.rows], "o", ms=3.5, color=color)
        axes.plot(np.exp(budget.centre + x), np.exp(np.vander(x, 3, increasing=True) @ coefficients), color=color, lw=1)
        if np.any(np.isclose(optima.log_N, vertex)):
            at = vertex - budget.centre
            axes.plot(np.exp(vertex), np.exp(coefficients @ [1, at, at**2]), "k*", ms=8)
    axes.set(xscale="log", xlabel="parameters", ylabel="loss", title="budgets, dark to light: small to large; stars: optima")
    axes.grid(alpha=0.3)


def parametric(family: FamilyStudy) -> Figure:
    """Left lines of equal loss over compute and size with the runs and the efficient frontier, right the residuals."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    fit, runs = family.forms[MAIN].fit, family.runs
    C = np.linspace(np.log(runs.flops.min()), np.log(runs.flops.max()) + np.log(10), 80)
    N = np.linspace(np.log(runs.params.min()), np.log(runs.params.max()) + np.log(3), 80)
    grid_C, grid_N = (values.ravel() for values in np.meshgrid(C, N))
    grid_D = grid_C - fit.law.log_k - fit.law.q * grid_N
    loss = np.exp(fit.form.curve(fit.theta[None], Points(grid_N, grid_D, grid_C, grid_D))[0][0])
    # fewer tokens than a hundredth of the parameters is no run that anyone would make
    loss = np.where(grid_D - grid_N > np.log(0.01), loss, np.nan).reshape(80, 80)
    levels = np.exp(np.linspace(np.log(np.nanmin(loss)), np.log(runs.loss.max()), 14))
    lines = left.contour(np.exp(C), np.exp(N), loss, levels=levels, cmap="viridis", linewidths=0.9)
    left.clabel(lines, fmt="%.2f", fontsize=7, inline_spacing=1)
    left.scatter(runs.flops, runs.params, s=9, color="gray", label="runs")
    best = [float(np.exp(fit.form.optimum(fit.theta[None], c, fit.law)[0][0])) for c in C]
    left.plot(np.exp(C), best, "r-", lw=1.5, label="efficient frontier")
    left.set(xscale="log", yscale="log", xlabel=FLOPS, ylabel="parameters", ylim=(np.exp(N[0]), np.exp(N[-1])), title="loss")
    _finish(left)
    right.semilogx(runs.flops, 100 * np.expm1(fit.residual), "o", ms=3.5)
    right.axhspan(-100 * fit.noise, 100 * fit.noise, alpha=0.15, label="noise")
    right.set(xlabel=FLOPS, ylabel="measured over fitted loss - 1 (%)", title="residuals")
    _finish(right)
    return figure


def over_training(form: FormStudy) -> Figure:
    """The reducible loss L - E over compute, by token multiplier M = D / N; lines are the form at a few M."""
    figure = Figure(figsize=(6.5, 4.4), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel=FLOPS, ylabel="reducible loss, L - E")
    fit, runs = form.fit, form.fit.runs
    E, M = fit.values["E"], runs.tokens / runs.params
    above = runs.loss > E
    dots = axes.scatter(runs.flops[above], runs.loss[above] - E, c=np.log10(M[above]), s=14)
    C = np.linspace(np.log(runs.flops.min()), np.log(runs.flops.max()) + np.log(10), 40)
    for multiplier in np.exp(np.quantile(np.log(M), [0.1, 0.5, 0.9])):
        N = (C - fit.law.log_k - np.log(multiplier)) / (fit.law.q + 1)
        D = N + np.log(multiplier)
        loss = np.exp(fit.form.curve(fit.theta[None], Points(N, D, C, D))[0][0])
        axes.plot(np.exp(C), loss - E, lw=1, color=dots.to_rgba(np.log10(multiplier)), label=f"M = {multiplier:.3g}")
    figure.colorbar(dots, label="log10 of tokens per parameter M")
    _finish(axes)
    return figure


def repetition(form: FormStudy) -> Figure:
    """What tokens read again are worth: effective tokens per unique token over epochs."""
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axes = figure.add_subplot(xscale="log", yscale="log", xlabel="epochs", ylabel="effective tokens per unique token")
    seen = (form.fit.runs.tokens / form.fit.runs.unique).max()
    epochs = np.geomspace(1, max(100.0, 2 * seen), 100)
    axes.plot(epochs, epochs, "k:", lw=0.8, label="as good as new ones")
    found = form.profile["R_D"]
    low, value, high = (
        1 + rate * -np.expm1(-(epochs - 1) / rate) for rate in (max(found.low, 1e-9), found.value, min(found.high, 1e9))
    )
    axes.fill_between(epochs, low, high, alpha=0.3)
    axes.plot(epochs, value, label=f"R_D* = {found.value:.3g} ({found.low:.3g} to {found.high:.3g})")
    axes.axvline(seen, color="gray", lw=0.8, ls="--", label="most epochs run")
    _finish(axes)
    return figure


def families(study: Study) -> Figure:
    """Left the loss of compute-optimal runs over compute, right how far it lies above the first family's."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    flops = np.concatenate([family.runs.flops for family in study.families.values()])
    C = np.linspace(np.log(flops.min()), np.log(max(flops.max(), *study.targets)), 40)
    reference = None
    for k, (name, family) in enumerate(study.families.items()):
        form = family.forms[MAIN]
        theta = np.concatenate([form.fit.theta[None], form.vectors])
        with np.errstate(all="ignore"):
            log_loss = np.array([optimal_log_loss(form.fit, theta, c) for c in C])
        reference = log_loss if reference is None else reference
        above = 100 * np.expm1(log_loss - reference)
        for axes, values in ((left, np.exp(log_loss)), (right, above)):
            low, high = np.array([middle(drawn, study.config.level) for drawn in values[:, 1:]]).T
            axes.fill_between(np.exp(C), low, high, alpha=0.2, color=f"C{k}")
            axes.plot(np.exp(C), values[:, 0], color=f"C{k}", label=name)
            axes.axvline(family.runs.flops.max(), color=f"C{k}", ls=":", lw=0.8)
        left.plot(family.runs.flops, family.runs.loss, ".", ms=3, color=f"C{k}", alpha=0.6)
    left.set(xscale="log", xlabel=FLOPS, ylabel="loss at the compute-optimal size")
    right.set(xscale="log", xlabel=FLOPS, ylabel=f"loss above that of {next(iter(study.families))} (%)")
    _finish(left)
    _finish(right)
    return figure


def as_file(family: str) -> str:
    """Its name without what file names cannot hold."""
    return re.sub(r"[^\w.+-]", "_", family)


def _shade(k: int, of: int) -> tuple[float, float, float]:
    """Dark to light blue."""
    share = k / max(1, of - 1)
    return (0.03 + 0.55 * share, 0.19 + 0.55 * share, 0.42 + 0.5 * share)


def _finish(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
