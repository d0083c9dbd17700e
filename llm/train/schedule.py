"""The learning rate as a pure function of the step: nothing to save, nothing to restore."""

import math
from dataclasses import dataclass
from typing import Literal

from llm.errors import ConfigError


@dataclass(frozen=True)
class ScheduleConfig:
    """Linear warmup, then `wsd`: constant and a linear cooldown at the end; or `cosine`: half a cosine to the end.

    warmup: steps. cooldown: share of all steps (wsd only). final_ratio: of the rate at the end (after the last step) to the peak.
    """

    kind: Literal["wsd", "cosine"] = "wsd"
    warmup: int = 100
    cooldown: float = 0.2
    final_ratio: float = 0.0

    def check(self, where: str, steps: int) -> None:
        """Raises ConfigError."""
        if not 0 <= self.warmup < steps:
            raise ConfigError(f"{where}.warmup ({self.warmup}) must be at least 0 and less than train.steps ({steps}); shorten it")
        if not 0 <= self.final_ratio <= 1:
            raise ConfigError(f"{where}.final_ratio ({self.final_ratio}) must lie between 0 and 1")
        if not 0 <= self.cooldown <= 1:
            raise ConfigError(f"{where}.cooldown ({self.cooldown}) is a share of all steps; use a number between 0 and 1")
        if self.kind == "wsd" and self.warmup + round(self.cooldown * steps) > steps:
            raise ConfigError(
                f"{where}: warmup ({self.warmup} steps) and cooldown ({self.cooldown} of {steps} steps) overlap; shorten one"
            )


def learning_rate(schedule: ScheduleConfig, peak: float, step: int, steps: int) -> float:
    """The rate of step `step`, counted 1 .. `steps`. Step `warmup` has the peak; one after the last would have the final rate."""
    if step < schedule.warmup:
        return peak * step / schedule.warmup
    left = steps + 1 - step
    if schedule.kind == "cosine":
        share = (1 - math.cos(math.pi * left / (steps + 1 - max(1, schedule.warmup)))) / 2
    else:
        cooldown = round(schedule.cooldown * steps)
        share = min(1.0, left / (cooldown + 1))
    return peak * (schedule.final_ratio + (1 - schedule.final_ratio) * share)
