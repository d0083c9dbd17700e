"""One form fitted to the runs of one family: many starts, the share that reaches the optimum, the noise, the outliers."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy import ndarray

from eval.scaling.cost_law import CostLaw
from eval.scaling.forms import Form
from eval.scaling.huber import Problem, minimise
from eval.scaling.table import Runs
from llm.errors import DataError

# a start has reached the optimum when its objective is within this share of the least
REACHED = 1e-6
# residuals below this are those of a table without noise
EXACT = 1e-9
NORMAL_MAD = 1.4826


@dataclass(frozen=True)
class FitConfig:
    """delta: of Huber's loss, in nats of log loss. starts: of the form's grid, drawn by `seed`; all of it where it has fewer."""

    delta: float = 1e-3
    starts: int = 500
    seed: int = 0


@dataclass(frozen=True)
class Fit:
    """theta: [P]. reached: share of the starts that came to the optimum. law: cost of a run, for optima."""

    form: Form
    runs: Runs
    theta: ndarray
    objective: float
    starts: int
    reached: float
    delta: float
    law: CostLaw

    def problem(self, weights: ndarray | None = None) -> Problem:
        """Of these runs, weighted [n] or, for several problems at once, [S, n]."""
        x, form = self.runs.points, self.form
        weights = np.ones(len(self.runs)) if weights is None else weights
        return Problem(lambda theta: form.curve(theta, x), np.log(self.runs.loss), weights, self.delta)

    @cached_property
    def residual(self) -> ndarray:
        """log of the runs' loss over the fitted, [n]."""
        return np.log(self.runs.loss) - self.form.curve(self.theta[None], self.runs.points)[0][0]

    @property
    def noise(self) -> float:
        """A robust standard deviation of the residuals: 1.4826 times their median size, corrected for the parameters fitted."""
        n = len(self.runs)
        return float(NORMAL_MAD * np.median(np.abs(self.residual)) * np.sqrt(n / max(1, n - len(self.theta))))

    def outliers(self, beyond: float) -> ndarray:
        """Which runs lie further than `beyond` times the noise from the law, [n]."""
        return np.abs(self.residual) > max(beyond * self.noise, EXACT)

    @property
    def values(self) -> dict[str, float]:
        return {name: float(value[0]) for name, value in self.form.values(self.theta[None]).items()}


def fit(form: Form, runs: Runs, config: FitConfig) -> Fit:
    """The least objective over the starts. Raises DataError where there are fewer runs than the form's parameters and two more."""
    needed = len(form.parameters) + 2
    if len(runs) < needed:
        raise DataError(
            f"{len(runs)} runs of family {runs.families[0]!r} are too few for the form {form.name}; it needs at least {needed}, "
            "or choose forms with fewer parameters"
        )
    starts = form.starts()
    if config.starts < len(starts):
        starts = starts[np.random.default_rng(config.seed).choice(len(starts), config.starts, replace=False)]
    x = runs.points
    problem = Problem(lambda theta: form.curve(theta, x), np.log(runs.loss), np.ones(len(runs)), config.delta)
    theta, objective = minimise(problem, starts)
    objective = np.where(np.isnan(objective), np.inf, objective)
    best = int(objective.argmin())
    reached = float((objective <= objective[best] * (1 + REACHED) + EXACT**2).mean())
    return Fit(form, runs, theta[best], float(objective[best]), len(starts), reached, config.delta, runs.cost)
