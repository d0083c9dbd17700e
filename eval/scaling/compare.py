"""Two families at equal cost: which reaches the lower loss when each spends it optimally, by how much, and how sure that is.

Equal training FLOPs say what an architecture can do, equal accelerator-hours what it does on the hardware at hand (the Languini
protocol, arXiv:2309.11197, sec. 3). Differences and ratios are taken over resamples of both families' runs.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy import ndarray

from eval.scaling.cost_law import fit_cost
from eval.scaling.fit import Fit
from eval.scaling.intervals import Interval, middle, optimal_log_loss

Unit = Literal["FLOPs", "hours"]
# the search for equal losses: e^-30 to e^30 times the cost
REACH, HALVINGS = 30.0, 60


@dataclass(frozen=True)
class Comparison:
    """difference: loss of `second` minus loss of `first`. times: over `cost`, that at which `second` reaches the loss of `first`.

    beyond: `cost` over that of the largest run that both families reach.
    """

    first: str
    second: str
    unit: Unit
    cost: float
    losses: tuple[float, float]
    difference: Interval
    times: Interval
    beyond: float
    verdict: str


def at_equal_cost(first: Fit, second: Fit, vectors: tuple[ndarray, ndarray], cost: float, unit: Unit, level: float) -> Comparison:
    """vectors: `bootstrap` of both. Where unit is hours, both fits' laws are those of hours (`in_hours`)."""
    thetas = [np.concatenate([fit.theta[None], theta]) for fit, theta in zip((first, second), vectors, strict=True)]
    with np.errstate(all="ignore"):
        logs = [optimal_log_loss(fit, theta, np.log(cost)) for fit, theta in zip((first, second), thetas, strict=True)]
        times = np.exp(_cost_of(second, thetas[1], logs[0], np.log(cost)) - np.log(cost))
    losses = np.exp(logs)
    difference = _interval(losses[1] - losses[0], level)
    largest = [np.exp(fit.law.log_cost(fit.runs.points.N, fit.runs.points.D)).max() for fit in (first, second)]
    names = first.runs.families[0], second.runs.families[0]
    beyond = float(cost / min(largest))
    found = Comparison(
        *names, unit, cost, (float(losses[0][0]), float(losses[1][0])), difference, _interval(times, level), beyond, ""
    )
    return replace(found, verdict=_verdict(found, level))


def in_hours(fit: Fit) -> Fit:
    """The same fit with cost in accelerator-hours."""
    x = fit.runs.points
    return replace(fit, law=fit_cost(x.N, x.D, np.log(fit.runs.hours)))


def _cost_of(fit: Fit, theta: ndarray, log_loss: ndarray, around: float) -> ndarray:
    """log cost at which each theta's optimal loss is `log_loss`, infinite where it never is, by bisection."""
    low, high = np.full(len(theta), around - REACH), np.full(len(theta), around + REACH)
    never = optimal_log_loss(fit, theta, high) > log_loss
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        above = optimal_log_loss(fit, theta, middle) > log_loss
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.where(never, np.inf, (low + high) / 2)


def _interval(values: ndarray, level: float) -> Interval:
    """The first is the estimate."""
    return Interval(float(values[0]), *middle(values[1:], level))


def _verdict(c: Comparison, level: float) -> str:
    where = f"at {c.cost:.3g} {'FLOPs' if c.unit == 'FLOPs' else 'accelerator-hours'}"
    if c.beyond > 1.001:
        where += f" ({c.beyond:.3g} times the largest run of both)"
    of = f"{level:.0%} interval {c.difference.low:+.4f} to {c.difference.high:+.4f}"
    if c.difference.holds(0) or np.isnan(c.difference.low):
        return f"{where}: no difference between {c.first} and {c.second} can be told ({c.difference.value:+.4f}, {of})"
    better, worse = (c.first, c.second) if c.difference.value > 0 else (c.second, c.first)
    sentence = f"{where}: {better} is better than {worse} by {abs(c.difference.value):.4f} ({c.second} - {c.first}: {of})"
    times = f"{c.times.value:.3g} times the cost ({c.times.low:.3g} to {c.times.high:.3g})"
    return f"{sentence}; {c.second} reaches the loss of {c.first} at {times}"
