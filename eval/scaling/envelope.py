"""Approach 1 of arXiv:2203.15556, sec. 3.1: at each compute the size whose loss is least, and a power law through those sizes.

The runs of one size, in the order of their compute, are its curve; between runs log loss is linear in log compute. The paper reads
1,500 logarithmic steps of compute off whole training curves; a table of finished runs has a point per run instead, so that no loss
is read where the learning rate has not come down.
"""

import numpy as np
from numpy import ndarray

from eval.scaling.cost_law import CostLaw
from eval.scaling.power_law import Optima, line_through, redrawn
from eval.scaling.table import Runs

STEPS = 1500


def envelope(runs: Runs, law: CostLaw, smooth: ndarray, noise: float, resamples: int, seed: int) -> Optima | str:
    """smooth, noise: log loss without noise [n], as a form fits it, and its standard deviation; the interval is their scatter.

    A sentence where the table has no envelope.
    """
    log_C, sizes = np.log(runs.flops), np.unique(runs.params)
    curves = [rows for rows in (np.flatnonzero(runs.params == size) for size in sizes) if len(np.unique(log_C[rows])) > 1]
    if len(curves) < 3:
        return f"approach 1 needs at least 3 sizes with runs at several computes; the table has {len(curves)}"
    log_N = np.log([runs.params[rows[0]] for rows in curves])
    at = np.linspace(log_C.min(), log_C.max(), STEPS)

    def winners(log_loss: ndarray) -> ndarray:
        """Per step the size of least loss, an index; -1 where it is the smallest or largest of those that have a loss there."""
        losses = np.stack([_curve(log_C[rows], log_loss[rows], at) for rows in curves])
        there = np.isfinite(losses)
        best = np.where(there, losses, np.inf).argmin(0)
        first, last = there.argmax(0), len(curves) - 1 - there[::-1].argmax(0)
        return np.where((best > first) & (best < last), best, -1)

    def line(log_loss: ndarray) -> ndarray:
        best = winners(log_loss)
        return line_through(at, np.where(best >= 0, log_N[best], np.nan), np.ones(STEPS))

    log_loss = np.log(runs.loss)
    best = winners(log_loss)
    inside = best >= 0
    if len(set(best[inside].tolist())) < 2:
        return "approach 1 finds fewer than 2 sizes that are best between a smaller and a larger one; run more sizes"
    lines = line(log_loss) + redrawn(line, smooth, noise, resamples, seed)
    cautions: tuple[str, ...] = ()
    if inside.mean() < 0.5:
        cautions = (
            f"approach 1: at {1 - inside.mean():.0%} of the computes the best size is the smallest or largest there; left out",
        )
    return Optima("envelope", at[inside], log_N[best[inside]], np.ones(inside.sum()), line(log_loss), lines, law, cautions)


def _curve(log_C: ndarray, log_loss: ndarray, at: ndarray) -> ndarray:
    """Interpolated, NaN beyond its runs; runs of the same compute are averaged."""
    places, group = np.unique(log_C, return_inverse=True)
    return np.interp(at, places, np.bincount(group, log_loss) / np.bincount(group), left=np.nan, right=np.nan)
