"""What a reader of a fit must know before believing it, as sentences."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy import ndarray

from eval.scaling.fit import Fit
from eval.scaling.huber import minimise
from eval.scaling.intervals import Interval
from eval.scaling.isoflop import isoflop
from eval.scaling.ladder import short
from eval.scaling.table import Runs

# runs are duplicates when parameters and tokens differ by less than this share
ALIKE = 0.005
# bounds beyond which a sentence is due
EXTRAPOLATION, SWING, RATIO_SPREAD, EPOCHS, STARTS, COST_LAW = 10.0, 0.02, 0.35, 1.5, 0.02, 0.05


def of_runs(runs: Runs) -> list[str]:
    """Cautions that need no fit: duplicates, one ratio of tokens to parameters, repetition, FLOPs that follow no law."""
    said = duplicates(runs)
    ratio = float(np.std(np.log(runs.tokens / runs.params)))
    if ratio < RATIO_SPREAD:
        said.append(
            f"all runs have much the same tokens per parameter (its logarithm spreads by {ratio:.2f}), which fixes neither "
            "exponents nor optima; run several ratios"
        )
    epochs = float((runs.tokens / runs.unique).max())
    if epochs > EPOCHS:
        said.append(f"tokens were read up to {epochs:.3g} times, which all forms but data_constrained take for new ones")
    law = runs.cost
    if law.worst > COST_LAW:
        said.append(f"FLOPs deviate by up to {law.worst:.0%} from {np.exp(law.log_k):.3g} N^{law.q:.3f} D, the law behind optima")
    return said


def duplicates(runs: Runs) -> list[str]:
    """Runs of the same size and tokens, and by how much approach 2's exponent moves with which of them are kept."""
    groups = repeated(runs)
    if not groups:
        return []
    keep = {"best": np.ones(len(runs), bool), "worst": np.ones(len(runs), bool)}
    for rows in groups:
        for which, choose in (("best", np.argmin), ("worst", np.argmax)):
            keep[which][rows] = False
            keep[which][rows[choose(runs.loss[rows])]] = True
    lines = "; ".join(", ".join(map(str, runs.line[rows])) for rows in groups[:3]) + ("; ..." if len(groups) > 3 else "")
    said = f"{len(groups)} sizes were run several times with the same tokens ({lines}) and count several times"
    found = [isoflop(runs[rows], runs.cost, 0, 0) for rows in keep.values()]
    if any(isinstance(optima, str) for optima in found):
        return [said]
    low, high = sorted(float(optima.line[1]) for optima in found if not isinstance(optima, str))
    warn = "; average them, or settle which count" if high - low > SWING else ""
    return [f"{said}: with the best or the worst of each alone approach 2's exponent of N is {low:.3f} or {high:.3f}{warn}"]


def repeated(runs: Runs) -> list[ndarray]:
    """Rows of each group of duplicates."""
    log = np.log(np.stack([runs.params, runs.tokens], 1))
    left, groups = list(range(len(runs))), []
    while left:
        alike = [row for row in left if np.abs(log[row] - log[left[0]]).max() < ALIKE]
        left = [row for row in left if row not in alike]
        if len(alike) > 1:
            groups.append(np.array(alike))
    return groups


def of_fit(fit: Fit, intervals: Mapping[str, Interval], beyond: float) -> list[str]:
    """Starts that miss the optimum, parameters without bounds, outliers and what they move."""
    name, said = fit.form.name, []
    if fit.reached < STARTS:
        said.append(f"{name}: only {fit.reached:.1%} of {fit.starts} starts came to the optimum; raise fit.starts")
    unbounded = [key for key, found in intervals.items() if "@" not in key and not _bounded(found)]
    if unbounded and fit.noise > 0:
        said.append(f"{name}: the runs do not bound {', '.join(unbounded)} on both sides")
    outlying = fit.outliers(beyond)
    if outlying.any() and (~outlying).sum() >= len(fit.theta) + 2:
        said.append(_outliers(fit, outlying, beyond))
    return said


def _bounded(found: Interval) -> bool:
    """An end that is 0 is that of a logarithm without bound."""
    return bool(np.isfinite([found.low, found.high]).all() and found.low != 0)


def _outliers(fit: Fit, outlying: ndarray, beyond: float) -> str:
    theta, _ = minimise(fit.problem((~outlying).astype(float)[None]), fit.theta[None])
    without = replace(fit, theta=theta[0])
    moved = ", ".join(f"{key} {fit.values[key]:.4g} -> {value:.4g}" for key, value in without.values.items())
    ratios = [_optimal_ratio(each) for each in (fit, without)]
    lines = ", ".join(map(str, fit.runs.line[outlying][:5])) + (", ..." if outlying.sum() > 5 else "")
    return (
        f"{fit.form.name}: {outlying.sum()} runs lie further than {beyond:g} times the noise from the fit ({lines}); they count, "
        f"with Huber's bounded pull; without them {moved}, D/N at the largest compute {ratios[0]:.3g} -> {ratios[1]:.3g}; "
        "outliers=drop leaves out those of the Chinchilla fit"
    )


def _optimal_ratio(fit: Fit) -> float:
    N, D = fit.form.optimum(fit.theta[None], float(np.log(fit.runs.flops.max())), fit.law)
    return float(np.exp(D - N)[0])


def of_target(fit: Fit, cost: float) -> list[str]:
    """Extrapolation, and optima among sizes or ratios of tokens to parameters that nothing was run at."""
    said, runs = [], fit.runs
    times = cost / runs.flops.max()
    if times > EXTRAPOLATION * 1.001:
        said.append(f"{cost:.3g} FLOPs are {times:.3g} times the largest run: intervals there assume that the form still holds")
    N, D = (float(np.exp(log[0])) for log in fit.form.optimum(fit.theta[None], float(np.log(cost)), fit.law))
    if not np.isfinite(N):
        return [*said, f"{fit.form.name}: at {cost:.3g} FLOPs there is no optimum, an exponent is not positive"]
    ratios = runs.tokens / runs.params
    if not ratios.min() <= D / N <= ratios.max():
        said.append(
            f"{fit.form.name}: the optimum at {cost:.3g} FLOPs, {D / N:.3g} tokens per parameter, lies outside of the "
            f"{ratios.min():.3g} to {ratios.max():.3g} that were run"
        )
    if cost <= runs.flops.max() and not runs.params.min() <= N <= runs.params.max():
        said.append(f"{fit.form.name}: the optimal size at {cost:.3g} FLOPs, {short(N)}, lies outside of the sizes that were run")
    return said
