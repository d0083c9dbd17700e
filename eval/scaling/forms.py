"""Parametric forms of the loss, as log L and its gradient for many parameter vectors at once.

| form | L | source |
|---|---|---|
| chinchilla | E + A / N^alpha + B / D^beta | Hoffmann et al., arXiv:2203.15556, eq. 2 |
| kaplan | ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D | Kaplan et al., arXiv:2001.08361, eq. 1.5 |
| over_training | E + (a M^eta + b M^-eta) C^-eta, M = D / N | Gadre et al., arXiv:2403.08540, eq. 4 |
| data_constrained | E + A / N'^alpha + B / D'^beta, the worth of N and D | Muennighoff et al., arXiv:2305.16264, eq. 5-6, 17 |

Each is a log-sum-exp of terms in `theta`, whose columns are named by `parameters`: scales are logarithms (a = log A, ...), so that
terms stay positive. S parameter vectors are evaluated at n points: `curve` gives log L [S, n] and its gradient [S, P, n].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Protocol

import numpy as np
from numpy import ndarray

from eval.scaling.cost_law import CostLaw


@dataclass(frozen=True)
class Points:
    """Logarithms of parameters, tokens, training FLOPs and unique tokens; [n], or [S, n] where each theta has its own."""

    N: ndarray
    D: ndarray
    C: ndarray
    U: ndarray


class Form(Protocol):
    """parameters: names of theta's columns. starts: where fits begin, [M, P]. values: what papers call the parameters."""

    name: str
    parameters: tuple[str, ...]

    def curve(self, theta: ndarray, x: Points) -> tuple[ndarray, ndarray]: ...
    def starts(self) -> ndarray: ...
    def values(self, theta: ndarray) -> dict[str, ndarray]: ...
    def optimum(self, theta: ndarray, log_cost: float | ndarray, law: CostLaw) -> tuple[ndarray, ndarray]: ...


# a summand: its logarithm [S, n] and, by column of theta, the gradient of that
Term = tuple[ndarray, Mapping[int, ndarray | float]]


def log_sum(terms: Sequence[Term], columns: int) -> tuple[ndarray, ndarray]:
    """log sum exp over terms, [S, n], and its gradient, [S, P, n]."""
    logs = np.stack(np.broadcast_arrays(*(log for log, _ in terms)))
    total = np.logaddexp.reduce(logs)
    gradient = np.zeros((len(total), columns, total.shape[1]))
    for share, (_, parts) in zip(np.exp(logs - total), terms, strict=True):
        for column, part in parts.items():
            gradient[:, column] += share * part
    return total, gradient


def _columns(theta: ndarray) -> ndarray:
    """[P, S, 1]"""
    return theta.T[..., None]


def _grid(*levels: Sequence[float]) -> ndarray:
    return np.array(list(product(*levels)), dtype=float)


def _exp(log: ndarray) -> ndarray:
    """Infinite where a resample or a wild start leaves the range of numbers."""
    with np.errstate(over="ignore"):
        return np.exp(log)


class Chinchilla:
    name = "chinchilla"
    parameters = ("a", "b", "e", "alpha", "beta")

    def curve(self, theta: ndarray, x: Points) -> tuple[ndarray, ndarray]:
        a, b, e, alpha, beta = _columns(theta)
        return log_sum([(a - alpha * x.N, {0: 1, 3: -x.N}), (b - beta * x.D, {1: 1, 4: -x.D}), (e, {2: 1})], 5)

    def starts(self) -> ndarray:
        """The 4,500 of arXiv:2203.15556, appendix D.2."""
        scales, exponents = range(0, 26, 5), (0, 0.5, 1, 1.5, 2)
        return _grid(scales, scales, (-1, -0.5, 0, 0.5, 1), exponents, exponents)

    def values(self, theta: ndarray) -> dict[str, ndarray]:
        a, b, e, alpha, beta = theta.T
        return {"E": _exp(e), "A": _exp(a), "B": _exp(b), "alpha": alpha, "beta": beta}

    def optimum(self, theta: ndarray, log_cost: float | ndarray, law: CostLaw) -> tuple[ndarray, ndarray]:
        """log N, log D of least loss at a cost k N^q D: alpha A N^-alpha = q beta B D^-beta (q = 1: arXiv:2203.15556, eq. 4)."""
        a, b, _, alpha, beta = theta.T
        return balanced(a, b, alpha, beta, log_cost, law)


def balanced(
    a: ndarray, b: ndarray, alpha: ndarray, beta: ndarray, log_cost: float | ndarray, law: CostLaw
) -> tuple[ndarray, ndarray]:
    """The optimum of A / N^alpha + B / D^beta at a cost; NaN where one of the exponents is not positive and there is none."""
    budget = log_cost - law.log_k
    usable = (alpha > 0) & (beta > 0)
    alpha, beta = np.where(usable, alpha, np.nan), np.where(usable, beta, np.nan)
    N = (a + np.log(alpha) - b - np.log(law.q * beta) + beta * budget) / (alpha + law.q * beta)
    return N, budget - law.q * N


class Kaplan:
    """theta: x log N_c, x, log D_c, alpha_D, with x = alpha_N / alpha_D. Without irreducible loss."""

    name = "kaplan"
    parameters = ("a", "x", "d", "alpha_D")

    def curve(self, theta: ndarray, x: Points) -> tuple[ndarray, ndarray]:
        a, ratio, d, exponent = _columns(theta)
        inner, gradient = log_sum([(a - ratio * x.N, {0: 1, 1: -x.N}), (d - x.D, {2: 1})], 4)
        gradient *= exponent[..., None]
        gradient[:, 3] = inner
        return exponent * inner, gradient

    def starts(self) -> ndarray:
        grid = _grid(range(10, 51, 10), (0.25, 0.5, 1, 2), range(10, 51, 10), (0.03, 0.1, 0.3, 1))
        grid[:, 0] *= grid[:, 1]
        return grid

    def values(self, theta: ndarray) -> dict[str, ndarray]:
        a, ratio, d, exponent = theta.T
        return {"alpha_N": ratio * exponent, "alpha_D": exponent, "N_c": _exp(a / ratio), "D_c": _exp(d)}

    def optimum(self, theta: ndarray, log_cost: float | ndarray, law: CostLaw) -> tuple[ndarray, ndarray]:
        a, ratio, d, _ = theta.T
        return balanced(a, d, ratio, np.ones_like(ratio), log_cost, law)


class OverTraining:
    name = "over_training"
    parameters = ("a", "b", "e", "eta")

    def curve(self, theta: ndarray, x: Points) -> tuple[ndarray, ndarray]:
        a, b, e, eta = _columns(theta)
        M = x.D - x.N
        return log_sum([(a + eta * (M - x.C), {0: 1, 3: M - x.C}), (b - eta * (M + x.C), {1: 1, 3: -M - x.C}), (e, {2: 1})], 4)

    def starts(self) -> ndarray:
        scales = range(0, 26, 5)
        return _grid(scales, scales, (-1, -0.5, 0, 0.5, 1), (0.05, 0.1, 0.2, 0.5, 1))

    def values(self, theta: ndarray) -> dict[str, ndarray]:
        a, b, e, eta = theta.T
        return {"E": _exp(e), "a": _exp(a), "b": _exp(b), "eta": eta, "M_opt": _exp((b - a) / (2 * eta))}

    def optimum(self, theta: ndarray, log_cost: float | ndarray, law: CostLaw) -> tuple[ndarray, ndarray]:
        """M = (b / a)^(1 / (2 eta)) at every cost."""
        a, b, _, eta = theta.T
        M = (b - a) / (2 * np.where(eta > 0, eta, np.nan))
        N = (log_cost - law.log_k - M) / (law.q + 1)
        return N, N + M


class DataConstrained:
    """theta: `Chinchilla`'s, log R_D* and log R_N*: repetitions after which tokens and parameters lose their worth.

    D' = U (1 + R_D* (1 - exp(-R / R_D*))), R = D / U - 1; N' likewise from U_N, the compute-optimal parameters for U tokens, or N.
    With as many unique tokens as tokens and N below U_N it is Chinchilla's.
    """

    name = "data_constrained"
    parameters = (*Chinchilla.parameters, "r_D", "r_N")

    def curve(self, theta: ndarray, x: Points) -> tuple[ndarray, ndarray]:
        a, b, e, alpha, beta, r_D, r_N = _columns(theta)
        U = np.minimum(x.U, x.D)
        D, _, D_by_r = effective(x.D, U, r_D)
        enough, by = self._parameters_for(U, a, b, alpha, beta)
        # where U_N is N itself nothing is in excess and U_N does not depend on theta
        N, N_by_U, N_by_r = effective(x.N, np.minimum(enough, x.N), r_N)
        N_by_U = np.where(enough < x.N, N_by_U, 0)
        excess = {column: -alpha * N_by_U * part for column, part in by.items()}
        size: Term = (a - alpha * N, {0: 1 + excess[0], 1: excess[1], 3: excess[3] - N, 4: excess[4], 6: -alpha * N_by_r})
        return log_sum([size, (b - beta * D, {1: 1, 4: -D, 5: -beta * D_by_r}), (e, {2: 1})], 7)

    @staticmethod
    def _parameters_for(U: ndarray, a: ndarray, b: ndarray, alpha: ndarray, beta: ndarray) -> tuple[ndarray, dict[int, ndarray]]:
        """log U_N, the N of alpha A N^-alpha = beta B U^-beta, and its gradient by column."""
        # exponents that leave the positive numbers in a trial step are turned back by what they do to the loss
        alpha, beta = np.maximum(alpha, 1e-6), np.maximum(beta, 1e-6)
        N = (a + np.log(alpha) - b - np.log(beta) + beta * U) / alpha
        return N, {0: 1 / alpha, 1: -1 / alpha, 3: (1 / alpha - N) / alpha, 4: (U - 1 / beta) / alpha}

    def starts(self) -> ndarray:
        scales, exponents, repeats = (5, 10, 15), (0.25, 0.5), (np.log(3), np.log(30))
        return _grid(scales, scales, (0, 0.5), exponents, exponents, repeats, repeats)

    def values(self, theta: ndarray) -> dict[str, ndarray]:
        return {**Chinchilla().values(theta[:, :5]), "R_D": _exp(theta[:, 5]), "R_N": _exp(theta[:, 6])}

    def optimum(self, theta: ndarray, log_cost: float | ndarray, law: CostLaw) -> tuple[ndarray, ndarray]:
        """With unlimited unique tokens Chinchilla's, exact where q is 1, as in U_N. `constrained_optimum` has a limit."""
        return Chinchilla().optimum(theta[:, :5], log_cost, law)

    def constrained_optimum(self, theta: ndarray, log_cost: float, law: CostLaw, unique: float) -> tuple[ndarray, ndarray]:
        """log N, log D of least loss at a cost from `unique` tokens, by golden sections on log N around the unlimited one."""
        budget, ratio = log_cost - law.log_k, (np.sqrt(5) - 1) / 2

        def loss(N: ndarray) -> ndarray:
            D = (budget - law.q * N)[:, None]
            x = Points(N[:, None], D, np.full_like(D, log_cost), np.full_like(D, np.log(unique)))
            return self.curve(theta, x)[0][:, 0]

        centre = self.optimum(theta, log_cost, law)[0]
        low, high = centre - 10.0, centre + 10.0
        for _ in range(60):
            left, right = high - ratio * (high - low), low + ratio * (high - low)
            lower = loss(left) < loss(right)
            low, high = np.where(lower, low, left), np.where(lower, right, high)
        N = (low + high) / 2
        return N, budget - law.q * N


def effective(log_all: ndarray, log_unique: ndarray, log_rate: ndarray) -> tuple[ndarray, ndarray, ndarray]:
    """log of U (1 + R* (1 - exp(-R / R*))), R = all / U - 1, and its derivatives by log U and log R*."""
    repeats = np.expm1(np.maximum(log_all - log_unique, 0))
    rate = np.exp(np.clip(log_rate, -20, 20))
    left = np.exp(-repeats / rate)
    worth = 1 + rate * -np.expm1(-repeats / rate)
    return (
        log_unique + np.log(worth),
        1 - left * (repeats + 1) / worth,
        (rate * -np.expm1(-repeats / rate) - left * repeats) / worth,
    )


FORMS: dict[str, Form] = {form.name: form for form in (Chinchilla(), Kaplan(), OverTraining(), DataConstrained())}
