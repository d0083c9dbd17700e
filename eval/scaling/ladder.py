"""The next runs: a ladder of sizes times tokens for a compute budget, around the optimum that the fit predicts.

Runs at several ratios of tokens to parameters tell the two exponents apart; runs at one ratio alone cannot. The ladder is written
as YAML: a list of runs, each with the words that `launch/pretrain.py` takes where experiments are named.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from eval.scaling.fit import Fit
from eval.scaling.forms import Points
from llm.cost import model_cost
from llm.errors import ConfigError
from llm.train.config import load_config
from llm.train.teacher import flops_per_token
from llm.whole_file import write_text


@dataclass(frozen=True)
class LadderConfig:
    """budget: FLOPs of all runs together; null: no plan. sizes: rungs, each with `step` times the compute of the one below.

    ratios: tokens of each rung's runs, over the optimal tokens of its size. experiments: config files, from small to large, as
    the rungs instead of sizes; those that the budget has no room for are left out.
    """

    budget: float | None = None
    sizes: int = 5
    step: float = 3.0
    ratios: list[float] = field(default_factory=lambda: [0.5, 1.0, 2.0])
    experiments: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raises ConfigError."""
        if self.budget is not None and not 0 < self.budget < math.inf:
            raise ConfigError(f"ladder.budget ({self.budget}) must be positive FLOPs, or null for no plan")
        if self.sizes < 1 or not 1 < self.step < math.inf:
            raise ConfigError(f"ladder.sizes ({self.sizes}) must be at least 1 and ladder.step ({self.step}) more than 1")
        if not self.ratios or not all(0 < ratio < math.inf for ratio in self.ratios):
            raise ConfigError(f"ladder.ratios ({self.ratios}) must be positive numbers; use [0.5, 1, 2]")


@dataclass(frozen=True)
class Rung:
    """loss: as the fit predicts it. words: for launch/pretrain.py, empty where no experiment is named."""

    name: str
    params: float
    tokens: float
    flops: float
    loss: float
    words: tuple[str, ...] = ()


def ladder(fit: Fit, config: LadderConfig) -> list[Rung]:
    """The runs, small to large. Raises ConfigError where there is no optimum, or an experiment exceeds the budget alone."""
    assert config.budget is not None
    if not np.isfinite(fit.form.optimum(fit.theta[None], 0.0, fit.law)[0][0]):
        raise ConfigError(
            f"ladder.budget ({config.budget:g}) has no plan: the fit of {fit.form.name} has no optimal size; run more ratios"
        )
    if config.experiments:
        return _from_experiments(fit, config)
    share = sum(config.ratios) * sum(config.step**-k for k in range(config.sizes))
    rungs = []
    for k in reversed(range(config.sizes)):
        cost = config.budget / share * config.step**-k
        N, D = (float(log[0]) for log in fit.form.optimum(fit.theta[None], math.log(cost), fit.law))
        rungs += [_rung(fit, N, D + math.log(ratio), fit.law.log_cost(N, D + math.log(ratio))) for ratio in config.ratios]
    return rungs


def _rung(fit: Fit, N: float, D: float, C: float, words: Sequence[str] = (), name: str = "") -> Rung:
    x = Points(*(np.array([value]) for value in (N, D, C, D)))
    loss = float(np.exp(fit.form.curve(fit.theta[None], x)[0][0, 0]))
    params, tokens, flops = (math.exp(value) for value in (N, D, C))
    return Rung(name or f"{short(params)}-{short(tokens)}", params, tokens, flops, loss, tuple(words))


def _from_experiments(fit: Fit, config: LadderConfig) -> list[Rung]:
    # the optimal tokens of a size: at the cost of which it is the optimal size
    N0, N1 = (fit.form.optimum(fit.theta[None], log_cost, fit.law)[0][0] for log_cost in (0.0, 1.0))
    rungs, left = [], float(config.budget or 0)
    for file in config.experiments:
        run = load_config([file, "name=unnamed"])
        if run.train.phases:
            raise ConfigError(f"ladder.experiments ({file}) has train.phases, whose lengths no rung can set; name one without them")
        N = math.log(model_cost(run.model, run.data.sequence_length).parameters)
        optimal = math.exp((N - N0) / (N1 - N0) - fit.law.log_k - fit.law.q * N)
        per_step = run.train.batch * run.data.sequence_length
        planned = []
        for ratio in config.ratios:
            steps = max(1, round(optimal * ratio / per_step))
            D = math.log(steps * per_step)
            name = f"{Path(file).stem}-{short(steps * per_step)}"
            C = D + math.log(flops_per_token(run))
            planned.append(_rung(fit, N, D, C, [file, f"name={name}", f"train.steps={steps}"], name))
        needed = sum(rung.flops for rung in planned)
        if needed > left:
            break
        left -= needed
        rungs += planned
    if not rungs:
        raise ConfigError(
            f"ladder.budget ({config.budget:g}) has no room for the runs of {config.experiments[0]}, which take "
            f"{needed:.3g} FLOPs; raise it, name a smaller experiment or use smaller ladder.ratios"
        )
    return rungs


def write_ladder(rungs: list[Rung], config: LadderConfig, path: Path) -> None:
    tree: dict[str, Any] = {
        "budget": config.budget,
        "flops": sum(rung.flops for rung in rungs),
        "runs": [{**asdict(rung), "words": list(rung.words)} for rung in rungs],
    }
    write_text(path, OmegaConf.to_yaml(OmegaConf.create(tree)))


def short(number: float) -> str:
    """12.3M, 1.5B"""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.3g}"
