"""Compute-optimal sizes as power laws of compute, found without a form of the loss (approaches 1 and 2 of arXiv:2203.15556)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from eval.scaling.cost_law import CostLaw
from eval.scaling.intervals import Interval, middle


@dataclass(frozen=True)
class Optima:
    """Optima (log cost, log N, its standard deviation or 1) and the line through them, weighted by 1 / deviation^2.

    lines: intercept and slope of log N on log cost when the noise is drawn again, [R, 2]. cautions: what a reader must know.
    """

    approach: str
    log_cost: ndarray
    log_N: ndarray
    deviation: ndarray
    line: ndarray
    lines: ndarray
    law: CostLaw
    cautions: tuple[str, ...] = ()

    def N_exponent(self, level: float) -> Interval:
        return Interval(float(self.line[1]), *middle(self.lines[:, 1], level))

    def D_exponent(self, level: float) -> Interval:
        """D = cost / (k N^q)."""
        return Interval(float(1 - self.law.q * self.line[1]), *middle(1 - self.law.q * self.lines[:, 1], level))

    def N_opt(self, cost: float, level: float) -> Interval:
        at = np.array([1, np.log(cost)])
        return Interval(*(float(np.exp(v)) for v in (self.line @ at, *middle(self.lines @ at, level))))

    def D_opt(self, cost: float, level: float) -> Interval:
        """With the ends of N swapped."""
        N = self.N_opt(cost, level)
        per_token = [float(np.exp(np.log(cost) - self.law.log_k - self.law.q * np.log(n))) for n in (N.value, N.high, N.low)]
        return Interval(*per_token)


def line_through(log_cost: ndarray, log_N: ndarray, deviation: ndarray) -> ndarray:
    """Intercept and slope, [2], by weighted least squares; NaN in log_N marks optima that are not there."""
    there = np.isfinite(log_N)
    weight = np.where(there, 1 / deviation**2, 0)
    x, y = np.broadcast_to(log_cost, log_N.shape), np.where(there, log_N, 0)
    with np.errstate(all="ignore"):
        mean_x, mean_y = ((weight * v).sum(-1) / weight.sum(-1) for v in (x, y))
        dx = x - mean_x[..., None]
        slope = (weight * dx * (y - mean_y[..., None])).sum(-1) / (weight * dx**2).sum(-1)
    return np.stack([mean_y - slope * mean_x, slope], -1)


def redrawn(estimate: Callable[[ndarray], ndarray], smooth: ndarray, noise: float, resamples: int, seed: int) -> ndarray:
    """How what `estimate` makes of log losses [n] scatters about its mean when noise is added to smooth ones, [R, 2]."""
    rng = np.random.default_rng(seed)
    drawn = np.array([estimate(smooth + noise * rng.standard_normal(len(smooth))) for _ in range(resamples)]).reshape(resamples, 2)
    found = np.isfinite(drawn).all(1)
    return drawn - drawn[found].mean(0) if found.any() else drawn
