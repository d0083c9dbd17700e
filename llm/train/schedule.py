"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

import math
from dataclasses import dataclass
from typing import Literal

from llm.errors import ConfigError


@dataclass(frozen=True)
class ScheduleConfig:
    """Linear warmup, then `wsd`: constant and a linear cooldown at the end; or `cosine`: half a cosine to the end.

    warmup: steps. cooldown: share of all steps, wsd's alone; null is 0.2. final_ratio: of the rate at the end (after the last
    step) to the peak.
    """

    kind: Literal["wsd", "cosine"] = "wsd"
    warmup: int = 100
    cooldown: float | None = None
    final_ratio: float = 0.0

    def cooldown_steps(self, steps: int) -> int:
        return round((0.2 if self.cooldown is None else self.cooldown) * steps)

    def check(self, where: str, steps: int) -> None:
        """Raises ConfigError."""
        if not 0 <= self.warmup < steps:
            raise ConfigError(f"{where}.warmup ({self.warmup}) must be at least 0 and less than train.steps ({steps}); shorten it")
        if not 0 <= self.final_ratio <= 1:
            raise ConfigError(f"{where}.final_ratio ({self.final_ratio}) must lie between 0 and 1")
        if self.kind == "cosine" and self.cooldown is not None:
            raise ConfigError(f"{where}.cooldown ({self.cooldown}) has no effect on a cosine; remove it, or set {where}.kind=wsd")
        if self.cooldown is not None and not 0 <= self.cooldown <= 1:
            raise ConfigError(f"{where}.cooldown ({self.cooldown}) is a share of all steps; use a number between 0 and 1")
        cooldown = self.cooldown_steps(steps)
        if self.kind == "wsd" and self.warmup + cooldown > steps:
            raise ConfigError(f"{where}: warmup ({self.warmup}) and cooldown ({cooldown} of {steps} steps) overlap; shorten one")


def learning_rate(schedule: ScheduleConfig, peak: float, step: int, steps: int) -> float:
    """The rate of step `step`, counted 1 .. `steps`. Step `warmup` has the peak; one after the last would have the final rate."""
    if step < schedule.warmup:
        return peak * step / schedule.warmup
    left = steps + 1 - step
    if schedule.kind == "cosine":
        share = (1 - math.cos(math.pi * left / (steps + 1 - max(1, schedule.warmup)))) / 2
    else:
        share = min(1.0, left / (schedule.cooldown_steps(steps) + 1))
    return peak * (schedule.final_ratio + (1 - schedule.final_ratio) * share)
