"""The learning rate as a pure function of the step: nothing to save, nothing to restore.

| kind | after the linear warmup |
|---|---|
| constant | the peak |
| linear | a line to the end |
| cosine | half a cosine to the end |
| wsd | the peak, then a cooldown at the end: a line, or 1 - sqrt (Hägele et al., arXiv:2405.18392, eq. 1) |

The stable part of `wsd` does not depend on where the end is, so a cooldown can start from any of its checkpoints: go on with, or
branch to, `train.steps` and `train.schedule.cooldown` that put it there.
"""

import math
from dataclasses import dataclass
from typing import Literal

from llm.errors import ConfigError


@dataclass(frozen=True)
class ScheduleConfig:
    """warmup: steps. cooldown: wsd's, as a share of all steps up to 1, or as a number of steps above; null is 0.2. shape: of the
    cooldown. final_ratio: of the rate at the end (after the last step) to the peak.
    """

    kind: Literal["wsd", "cosine", "linear", "constant"] = "wsd"
    warmup: int = 100
    cooldown: float | None = None
    shape: Literal["linear", "sqrt"] = "linear"
    final_ratio: float = 0.0

    def cooldown_steps(self, steps: int) -> int:
        cooldown = 0.2 if self.cooldown is None else self.cooldown
        return round(cooldown if cooldown > 1 else cooldown * steps)

    def check(self, where: str, steps: int) -> None:
        """Raises ConfigError."""
        if not 0 <= self.warmup < steps:
            raise ConfigError(f"{where}.warmup ({self.warmup}) must be at least 0 and less than train.steps ({steps}); shorten it")
        if not 0 <= self.final_ratio <= 1:
            raise ConfigError(f"{where}.final_ratio ({self.final_ratio}) must lie between 0 and 1")
        if self.kind == "constant" and self.final_ratio:
            raise ConfigError(f"{where}.final_ratio ({self.final_ratio}) has no effect on a constant rate; remove it")
        if self.kind != "wsd":
            for name, value in (("cooldown", self.cooldown), ("shape", self.shape if self.shape != "linear" else None)):
                if value is not None:
                    raise ConfigError(
                        f"{where}.{name} ({value}) has no effect on {where}.kind={self.kind}; remove it, or set {where}.kind=wsd"
                    )
            return
        if self.cooldown is not None and not (0 <= self.cooldown <= 1 or (self.cooldown > 1 and float(self.cooldown).is_integer())):
            raise ConfigError(
                f"{where}.cooldown ({self.cooldown}) is a share of all steps up to 1, or a whole number of steps; use 0.2 or 1000"
            )
        cooldown = self.cooldown_steps(steps)
        if self.warmup + cooldown > steps:
            raise ConfigError(f"{where}: warmup ({self.warmup}) and cooldown ({cooldown} of {steps} steps) overlap; shorten one")


def learning_rate(schedule: ScheduleConfig, peak: float, step: int, steps: int) -> float:
    """The rate of step `step`, counted 1 .. `steps`. Step `warmup` has the peak; one after the last would have the final rate."""
    if step < schedule.warmup:
        return peak * step / schedule.warmup
    if schedule.kind == "constant":
        return peak
    whole = schedule.cooldown_steps(steps) + 1 if schedule.kind == "wsd" else steps + 1 - max(1, schedule.warmup)
    left = min(1.0, (steps + 1 - step) / whole)
    if schedule.kind == "cosine":
        left = (1 - math.cos(math.pi * left)) / 2
    elif schedule.shape == "sqrt":
        left = 1 - math.sqrt(1 - left)
    return peak * (schedule.final_ratio + (1 - schedule.final_ratio) * left)
