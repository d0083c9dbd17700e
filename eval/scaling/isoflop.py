"""Approach 2 of arXiv:2203.15556, sec. 3.2: at each compute a parabola of log loss in log N, and a power law through the vertices.

Every vertex counts with 1 / its variance: the parabolas share one noise, and one with few or far sizes says little. The loss is no
parabola: where sizes lie one-sided or far from the optimum the vertex is biased, also without noise.
"""

from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from eval.scaling.cost_law import CostLaw
from eval.scaling.power_law import Optima, line_through, redrawn
from eval.scaling.table import Runs

# runs whose FLOPs differ by less than this are of one budget
SAME = 0.15
SIZES = 3


@dataclass(frozen=True)
class Budget:
    """The runs of one compute, their rows; x: log N around `centre`; solve: losses -> coefficients of 1, x, x^2."""

    rows: ndarray
    log_cost: float
    centre: float
    x: ndarray
    solve: ndarray

    def vertex(self, log_loss: ndarray) -> tuple[ndarray, ndarray]:
        """log N of the least loss, NaN where the parabola opens downwards; the coefficients."""
        coefficients = self.solve @ log_loss[self.rows]
        curved = coefficients[2] > 0
        return np.where(curved, self.centre - coefficients[1] / (2 * np.where(curved, coefficients[2], 1)), np.nan), coefficients

    def residual(self, log_loss: ndarray) -> ndarray:
        return log_loss[self.rows] - np.vander(self.x, 3, increasing=True) @ (self.solve @ log_loss[self.rows])

    def deviation(self, coefficients: ndarray, noise: float) -> float:
        """Standard deviation of the vertex for noise in log loss, to first order."""
        slope = np.array([0, -1 / (2 * coefficients[2]), coefficients[1] / (2 * coefficients[2] ** 2)])
        return float(noise * np.linalg.norm(slope @ self.solve))


def budgets(runs: Runs) -> list[Budget]:
    """Groups of runs of one compute with at least three sizes."""
    log_C, log_N = np.log(runs.flops), np.log(runs.params)
    order = np.argsort(log_C, kind="stable")
    groups: list[list[int]] = []
    for row in order:
        if groups and log_C[row] - log_C[groups[-1][0]] < SAME:
            groups[-1].append(row)
        else:
            groups.append([row])
    found = []
    for rows in map(np.array, groups):
        if len(np.unique(log_N[rows])) >= SIZES:
            centre = float(log_N[rows].mean())
            x = log_N[rows] - centre
            found.append(Budget(rows, float(log_C[rows].mean()), centre, x, np.linalg.pinv(np.vander(x, 3, increasing=True))))
    return found


def isoflop(runs: Runs, law: CostLaw, resamples: int, seed: int) -> Optima | str:
    """A sentence where the table has no two budgets with a vertex between their sizes."""
    log_loss, found = np.log(runs.loss), budgets(runs)
    if len(found) < 2:
        return f"approach 2 needs at least 2 computes with runs of {SIZES} sizes; the table has {len(found)}"
    free = sum(len(budget.rows) - 3 for budget in found)
    squares = sum(float((budget.residual(log_loss) ** 2).sum()) for budget in found)
    # with three sizes everywhere parabolas are exact and say nothing about the noise
    noise = float(np.sqrt(squares / free)) if free else 0.0
    cautions, kept, deviations = [], [], []
    for budget in found:
        vertex, coefficients = budget.vertex(log_loss)
        if not budget.x.min() <= vertex - budget.centre <= budget.x.max():
            cautions.append(f"approach 2: the optimum at {np.exp(budget.log_cost):.3g} FLOPs is outside of its sizes; left out")
            continue
        kept.append(budget)
        deviations.append(max(budget.deviation(coefficients, noise), 1e-9))
    if len(kept) < 2:
        return "; ".join([*cautions, "approach 2 has fewer than 2 optima between sizes; run smaller or larger ones"])
    if not free:
        cautions.append("approach 2: every compute has 3 runs, through which a parabola is exact: no interval; run more sizes")
    log_cost, deviation = np.array([budget.log_cost for budget in kept]), np.array(deviations)

    def line(losses: ndarray) -> ndarray:
        return line_through(log_cost, np.array([budget.vertex(losses)[0] for budget in kept]), deviation)

    log_N = np.array([float(budget.vertex(log_loss)[0]) for budget in kept])
    smooth = log_loss.copy()
    for budget in kept:
        smooth[budget.rows] -= budget.residual(log_loss)
    lines = line(log_loss) + redrawn(line, smooth, noise, resamples, seed)
    return Optima("isoflop", log_cost, log_N, deviation, line(log_loss), lines, law, tuple(cautions))
