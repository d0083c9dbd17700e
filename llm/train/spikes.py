"""Spikes: a loss or a gradient norm far above what was usual lately, seen before the weights change.

    value > factor x median(the last `window` good steps)

The median does not move with a few outliers, as mean and deviation would, and steps that were bad are not in it. The values are
those of all ranks together, alike on each, so the verdict is too; checkpoints keep them, and a resumed run judges as an undisturbed
one.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, NamedTuple

from llm.errors import ConfigError

JUDGED = ("loss", "grad_norm")


@dataclass(frozen=True)
class SpikeConfig:
    """loss, grad_norm: the factor; null: it is not judged. window: good steps, as many as it takes before there is a verdict.
    warmup: steps of the run that are not judged either. at_once: one spike is one bad step too many.
    """

    loss: float | None = None
    grad_norm: float | None = None
    window: int = 128
    warmup: int = 100
    at_once: bool = False

    @property
    def factors(self) -> dict[str, float]:
        """Of what is judged."""
        return {name: factor for name in JUDGED if (factor := getattr(self, name)) is not None}

    def check(self, where: str) -> None:
        """Raises ConfigError."""
        for name, factor in self.factors.items():
            if not 1 < factor < math.inf:
                raise ConfigError(
                    f"{where}.{name} ({factor}) is a factor of the median, and must be finite and above 1; "
                    "null switches it off, 1.5 is usual for a loss and 10 for a gradient norm"
                )
        if self.window < 1 or self.warmup < 0:
            raise ConfigError(
                f"{where}.window ({self.window}) must be at least 1 and {where}.warmup ({self.warmup}) at least 0; use 128 and 100"
            )
        if not self.factors and self != SpikeConfig():
            raise ConfigError(f"{where} has no effect without {where}.loss or {where}.grad_norm; set one, or remove it")


class Limits(NamedTuple):
    """Above which a step is bad. loss: None where no one asks for it, which saves an all-reduce."""

    loss: float | None = None
    grad_norm: float = math.inf


NO_LIMITS = Limits()


class Spikes:
    """What was usual lately."""

    def __init__(self, config: SpikeConfig):
        self.config = config
        self.restore({})

    def limits(self, step: int) -> Limits:
        """Of this step, counted from 1."""
        usual = self.usual()
        judges = step > self.config.warmup
        found = {
            name: factor * usual[name] if judges and len(self.past[name]) == self.config.window else math.inf
            for name, factor in self.config.factors.items()
        }
        return Limits(**found)

    def usual(self) -> dict[str, float]:
        """The median of what is judged."""
        return {name: median(values) if values else math.nan for name, values in self.past.items()}

    def add(self, values: Mapping[str, float]) -> None:
        """Those of a good step."""
        for name, past in self.past.items():
            past.append(values[name])

    def state(self) -> dict[str, list[float]]:
        """For a checkpoint."""
        return {name: list(past) for name, past in self.past.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.past = {name: deque(state.get(name, ()), self.config.window) for name in self.config.factors}
