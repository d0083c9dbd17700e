"""How far a fit can be trusted beyond its runs: the runs of largest compute are held out, and predicted from the others."""

from dataclasses import dataclass

import numpy as np

from eval.scaling.fit import FitConfig, fit
from eval.scaling.forms import Form
from eval.scaling.table import Runs


@dataclass(frozen=True)
class HoldOut:
    """Errors of the predicted loss, predicted / measured - 1. compute_ratio: the largest held out over the largest fitted."""

    fitted: int
    held_out: int
    compute_ratio: float
    mean: float
    mean_size: float
    largest: float


def hold_out(form: Form, runs: Runs, share: float, config: FitConfig) -> HoldOut | str:
    """share: of the runs, at least one; runs of the same compute go together. A sentence where too few would be left to fit."""
    computes = np.sort(runs.flops)[::-1]
    edge = computes[max(0, round(share * len(runs)) - 1)]
    held = runs.flops >= edge * (1 - 1e-6)
    if (~held).sum() < len(form.parameters) + 2:
        return f"no hold-out: without the {held.sum()} runs of largest compute {(~held).sum()} are left, too few to fit"
    found = fit(form, runs[~held], config)
    predicted = form.curve(found.theta[None], runs[held].points)[0][0]
    error = np.expm1(predicted - np.log(runs.loss[held]))
    return HoldOut(
        int((~held).sum()),
        int(held.sum()),
        float(runs.flops[held].max() / runs.flops[~held].max()),
        float(error.mean()),
        float(np.abs(error).mean()),
        float(error[np.abs(error).argmax()]),
    )
