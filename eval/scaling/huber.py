"""The fit: sum over runs of Huber(log L(theta) - log loss), for many parameter vectors at once.

Levenberg-Marquardt on Huber's reweighted squares (Huber 1964; Holland and Welsch 1977), every start with its own damping: no step
raises an objective. The objective is the **sum**: a mean of n runs is n times flatter, and optimisers' default tolerances take its
slopes for a minimum (arXiv:2404.10102, sec. 3).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

Curve = Callable[[ndarray], tuple[ndarray, ndarray]]

# starts worked on together: their arrays stay in the cache
TOGETHER = 128
# a start rests after so many steps in a row that lowered its objective by less than this share
REST, SHARE = 4, 1e-13
FLOOR = 1e-30


@dataclass(frozen=True)
class Tie:
    """A pull of `value(theta)` [S] towards `goal` [S]: strength / 2 (value - goal)^2 is added to the objective.

    Where it comes to rest, the objective without it is least among all vectors of that value: a point of the profile.
    """

    value: Callable[[ndarray], ndarray]
    goal: ndarray
    strength: ndarray

    def part(self, rows: ndarray) -> "Tie":
        return Tie(self.value, self.goal[rows], self.strength[rows])

    def slope(self, theta: ndarray) -> ndarray:
        """[S, P], by central differences."""
        out = np.empty_like(theta)
        for column in range(theta.shape[1]):
            step = np.zeros_like(theta)
            step[:, column] = 1e-5 * np.maximum(1, np.abs(theta[:, column]))
            out[:, column] = (self.value(theta + step) - self.value(theta - step)) / (2 * step[:, column])
        return out


@dataclass(frozen=True)
class Problem:
    """curve: theta [S, P] -> log L [S, n] and gradient [S, P, n]. target: log loss [n]. weights: of runs, [n] or [S, n]."""

    curve: Curve
    target: ndarray
    weights: ndarray
    delta: float

    def part(self, rows: ndarray) -> "Problem":
        return Problem(self.curve, _rows(self.target, rows), _rows(self.weights, rows), self.delta)

    def objective(self, theta: ndarray) -> ndarray:
        """[S]"""
        return self._objective(self.curve(theta)[0] - self.target)

    def _objective(self, residual: ndarray) -> ndarray:
        size = np.abs(residual)
        inside = np.minimum(size, self.delta)
        return (self.weights * inside * (size - inside / 2)).sum(1)

    def model(self, theta: ndarray) -> tuple[ndarray, ndarray, ndarray]:
        """Objective [S], its gradient [S, P] and the reweighted squares' matrix [S, P, P]."""
        log_loss, slope = self.curve(theta)
        residual = log_loss - self.target
        weights = self.weights * np.minimum(1, self.delta / np.maximum(np.abs(residual), FLOOR))
        weighted = slope * weights[:, None]
        return self._objective(residual), (weighted @ residual[..., None])[..., 0], weighted @ slope.transpose(0, 2, 1)


def minimise(problem: Problem, theta: ndarray, steps: int = 400, tie: Tie | None = None) -> tuple[ndarray, ndarray]:
    """Where each start comes to rest, [S, P], and the objective there (without the tie), [S]."""
    parts = np.array_split(np.arange(len(theta)), max(1, -(-len(theta) // TOGETHER)))
    with np.errstate(all="ignore"):
        found = [_descend(problem.part(rows), theta[rows], steps, tie and tie.part(rows)) for rows in parts]
        theta = np.concatenate(found)
        return theta, np.concatenate([problem.part(rows).objective(theta[rows]) for rows in parts])


def _descend(problem: Problem, theta: ndarray, steps: int, tie: Tie | None) -> ndarray:
    theta = theta.copy()
    damping, calm, active = np.full(len(theta), 1e-3), np.zeros(len(theta), int), np.arange(len(theta))
    value, gradient, matrix = _model(problem, theta, tie)
    for _ in range(steps):
        here, pulled = problem.part(active), tie and tie.part(active)
        trial = theta[active] - _step(gradient[active], matrix[active], damping[active])
        new_value, new_gradient, new_matrix = _model(here, trial, pulled)
        better = new_value < value[active]
        rows = active[better]
        gain = (value[active] - new_value) / np.maximum(value[active], FLOOR)
        theta[rows], value[rows] = trial[better], new_value[better]
        gradient[rows], matrix[rows] = new_gradient[better], new_matrix[better]
        damping[active] = np.clip(damping[active] * np.where(better, 0.2, 5), 1e-14, 1e14)
        # a refused step says nothing until the damping has made it tiny
        calm[active] = np.where(better & (gain > SHARE), 0, calm[active] + (better | (damping[active] > 1e8)))
        active = active[(calm[active] < REST) & (value[active] > FLOOR)]
        if not len(active):
            break
    return theta


def _model(problem: Problem, theta: ndarray, tie: Tie | None) -> tuple[ndarray, ndarray, ndarray]:
    value, gradient, matrix = problem.model(theta)
    if tie is not None:
        off, slope = tie.value(theta) - tie.goal, tie.slope(theta)
        value = value + tie.strength * off**2 / 2
        gradient = gradient + (tie.strength * off)[:, None] * slope
        matrix = matrix + tie.strength[:, None, None] * slope[:, :, None] * slope[:, None]
    # what overflows is no place to go
    bad = ~(np.isfinite(value) & np.isfinite(gradient).all(1) & np.isfinite(matrix).all((1, 2)))
    return np.where(bad, np.inf, value), gradient, matrix


def _step(gradient: ndarray, matrix: ndarray, damping: ndarray) -> ndarray:
    """Marquardt's: the damping scales with each parameter's own curvature."""
    scale = np.sqrt(np.einsum("spp->sp", matrix))
    scale = np.maximum(scale, 1e-12 * scale.max(1, keepdims=True) + FLOOR)
    damped = matrix / (scale[:, :, None] * scale[:, None]) + damping[:, None, None] * np.eye(gradient.shape[1])
    # a start that cannot be evaluated has nowhere to go
    sound = np.isfinite(damped).all((1, 2)) & np.isfinite(gradient).all(1)
    damped[~sound] = np.eye(gradient.shape[1])
    step = np.linalg.solve(damped, np.where(sound[:, None], gradient / scale, 0)[..., None])[..., 0]
    return step / scale


def _rows(values: ndarray, rows: ndarray) -> ndarray:
    return values[rows] if values.ndim == 2 else values
