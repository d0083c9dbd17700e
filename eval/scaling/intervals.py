"""Intervals of whatever follows from a fit: profile likelihood, or resampled runs refitted from the optimum.

Profile: all values of a quantity g at which the least objective f(g) stays within lambda / 2 F of the optimum's. F is Fisher's
quantile with 1 and n - P degrees of freedom; lambda = E psi^2 / E psi', psi Huber's derivative: 2 (f(g) - f) / lambda
is asymptotically chi-squared for M-estimates (Ronchetti 1982; Heritier and Ronchetti 1994). Errors in log loss are
taken as independent and alike.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy import ndarray
from scipy.stats import f as fisher

from eval.scaling.fit import EXACT, Fit
from eval.scaling.forms import Points
from eval.scaling.huber import Tie, minimise

# where the profile is looked at, in standard errors times the quantile; the second row where the first does not reach the limit
STEPS = ((0.5, 0.8, 1.0, 1.25, 1.6, 2.2), (4.0, 8.0, 16.0, 40.0))
# how much stiffer the tie is than the objective
STIFF = 20.0


@dataclass(frozen=True)
class Quantity:
    """`of`: theta [S, P] -> [S]; a logarithm where `log`, which reports undo."""

    name: str
    of: Callable[[ndarray], ndarray]
    log: bool = False

    def report(self, value: float) -> float:
        with np.errstate(over="ignore"):
            return float(np.exp(value)) if self.log else float(value)


@dataclass(frozen=True)
class Interval:
    """An end is infinite (0, in logarithms) where the runs do not bound the quantity on that side."""

    value: float
    low: float
    high: float

    def holds(self, truth: float) -> bool:
        return self.low <= truth <= self.high


def quantities(fit: Fit, targets: list[float]) -> list[Quantity]:
    """The form's parameters, the exponents of compute-optimal N and D, and at each cost in `targets` N, D and loss there."""
    form, law = fit.form, fit.law
    exponents = ("alpha", "beta", "eta")

    def parameter(name: str) -> Callable[[ndarray], ndarray]:
        plain = name.startswith(exponents)
        return lambda theta: form.values(theta)[name] if plain else np.log(form.values(theta)[name])

    def at(cost: float, which: int) -> Callable[[ndarray], ndarray]:
        return lambda theta: form.optimum(theta, np.log(cost), law)[which]

    found = [Quantity(name, parameter(name), not name.startswith(exponents)) for name in fit.values]
    found += [Quantity(f"{'ND'[k]}_exponent", lambda theta, k=k: _exponent(fit, theta, k)) for k in (0, 1)]
    for cost in targets:
        found += [Quantity(f"{'ND'[k]}_opt@{cost:.3g}", at(cost, k), True) for k in (0, 1)]
        found.append(Quantity(f"loss@{cost:.3g}", lambda theta, cost=cost: optimal_log_loss(fit, theta, np.log(cost)), True))
    return found


def _exponent(fit: Fit, theta: ndarray, which: int) -> ndarray:
    return fit.form.optimum(theta, 1.0, fit.law)[which] - fit.form.optimum(theta, 0.0, fit.law)[which]


def optimal_log_loss(fit: Fit, theta: ndarray, log_cost: float | ndarray) -> ndarray:
    """log loss of the compute-optimal run at a cost (one, or one for each theta), all its tokens being different."""
    N, D = (log[:, None] for log in fit.form.optimum(theta, log_cost, fit.law))
    C = np.broadcast_to(np.asarray(log_cost)[..., None], N.shape)
    return fit.form.curve(theta, Points(N, D, C, D))[0][:, 0]


def spread(fit: Fit) -> float:
    """lambda. E psi' is a difference over half a standard deviation each way: within delta itself there may be few residuals.

    P residuals are nearly 0 by the fit, as if they were not there: they leave out P of n from both means.
    """
    residual, delta = fit.residual, fit.delta
    width = max(delta, fit.noise / 2)

    def psi(r: ndarray) -> ndarray:
        return np.clip(r, -delta, delta)

    slopes = (psi(residual + width) - psi(residual - width)).sum() / (2 * width)
    return float((psi(residual) ** 2).sum() / max(slopes - len(fit.theta) * delta / width, delta / width))


def profile(fit: Fit, quantity: Quantity, level: float = 0.95) -> Interval:
    """By profile likelihood. A table without noise gives an interval without width."""
    centre = float(quantity.of(fit.theta[None])[0])
    if not np.isfinite(centre):
        return Interval(quantity.report(centre), np.nan, np.nan)
    limit = spread(fit) / 2 * float(fisher.ppf(level, 1, len(fit.runs) - len(fit.theta)))
    _, _, matrix = fit.problem().model(fit.theta[None])
    slope = Tie(quantity.of, np.array([centre]), np.ones(1)).slope(fit.theta[None])[0]
    scale = np.sqrt(np.diag(matrix[0])) + 1e-300
    step = np.linalg.pinv(matrix[0] / np.outer(scale, scale), rcond=1e-12, hermitian=True) @ (slope / scale)
    reach = float(np.sqrt(max(0.0, 2 * limit * (slope / scale) @ step)))
    if reach < EXACT * max(1, abs(centre)):
        return Interval(*[quantity.report(centre)] * 3)
    low, high = _ends(fit, quantity, centre, reach, limit)
    return Interval(quantity.report(centre), quantity.report(low), quantity.report(high))


def _ends(fit: Fit, quantity: Quantity, centre: float, reach: float, limit: float) -> tuple[float, float]:
    """Where the profile crosses the limit, below and above; infinite where it never does."""
    places, rises, ends = np.array([centre]), np.zeros(1), (-np.inf, np.inf)
    for steps in STEPS:
        goals = centre + reach * np.array([*steps, *(-step for step in steps)])
        tie = Tie(quantity.of, goals, np.full(len(goals), STIFF * 2 * limit / reach**2))
        theta, objective = minimise(fit.problem(), np.repeat(fit.theta[None], len(goals), 0), tie=tie)
        places = np.concatenate([places, quantity.of(theta)])
        rises = np.concatenate([rises, np.maximum(0, objective - fit.objective)])
        roots = np.sqrt(rises / limit)
        ends = (-_crossing(-places, roots, -centre), _crossing(places, roots, centre))
        if np.isfinite(ends).all():
            break
    return ends


def _crossing(places: ndarray, roots: ndarray, centre: float) -> float:
    """The first place above the centre where the root of the rise over the limit comes to 1, by linear interpolation."""
    order = np.argsort(places)
    order = order[places[order] >= centre]
    place, root = places[order], roots[order]
    beyond = np.flatnonzero(root >= 1)
    if not len(beyond) or not beyond[0]:
        return float(np.inf)
    k = beyond[0]
    return float(place[k - 1] + (1 - root[k - 1]) / (root[k] - root[k - 1]) * (place[k] - place[k - 1]))


def bootstrap(fit: Fit, resamples: int, seed: int) -> ndarray:
    """theta of as many runs drawn with replacement, refitted from the optimum, [resamples, P]; other draws for other families."""
    n, rng = len(fit.runs), np.random.default_rng([seed, *fit.runs.families[0].encode()])
    weights = rng.multinomial(n, np.full(n, 1 / n), resamples).astype(float)
    theta, _ = minimise(fit.problem(weights), np.repeat(fit.theta[None], resamples, 0))
    return theta


def percentiles(fit: Fit, quantity: Quantity, resampled: ndarray, level: float = 0.95) -> Interval:
    """The middle `level` of a quantity over `bootstrap`'s vectors."""
    with np.errstate(all="ignore"):
        low, high = middle(quantity.of(resampled), level)
    return Interval(*(quantity.report(v) for v in (float(quantity.of(fit.theta[None])[0]), low, high)))


def middle(values: ndarray, level: float) -> tuple[float, float]:
    """The ends of the middle `level` of values; those that are NaN are left out, infinite ones count and are not interpolated."""
    there = values[~np.isnan(values)]
    if not len(there):
        return np.nan, np.nan
    low, high = np.quantile(there, [(1 - level) / 2, (1 + level) / 2], method="nearest")
    return float(low), float(high)
