"""What a run costs as a law of its size: k N^q D, in FLOPs or accelerator-hours.

C = 6 N D is k = 6, q = 1 (arXiv:2001.08361, sec. 2.1). Attention's scores, embeddings and mixers with states make FLOPs per token
another function of N; over the sizes of a study it is close to a power, and `worst` says how close.
"""

from dataclasses import dataclass

import numpy as np
from numpy import ndarray


@dataclass(frozen=True)
class CostLaw:
    """worst: the largest relative deviation of the runs it was fitted to."""

    log_k: float = float(np.log(6))
    q: float = 1.0
    worst: float = 0.0

    def log_cost(self, log_N: ndarray, log_D: ndarray) -> ndarray:
        return self.log_k + self.q * log_N + log_D


def fit_cost(log_N: ndarray, log_D: ndarray, log_cost: ndarray) -> CostLaw:
    """Least squares of log cost per token on log N; with a single size, q = 1."""
    per_token = log_cost - log_D
    q = 1.0
    if np.ptp(log_N) > 1e-9:
        centred = log_N - log_N.mean()
        q = float(centred @ per_token / (centred @ centred))
    log_k = float((per_token - q * log_N).mean())
    return CostLaw(log_k, q, float(np.abs(np.expm1(per_token - q * log_N - log_k)).max()))
