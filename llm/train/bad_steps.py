"""Steps whose gradient is not finite: no weight and no moment of the optimizer ever sees them, and a few too many stop the run.

The verdict is the global gradient norm, which every rank has alike: a value that is not finite in any rank's gradient makes it so.
The check costs one read by the host per step.
"""

import json
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm.errors import BraidError, ConfigError
from llm.train.exits import BAD_STEPS

NAME = "bad_steps.jsonl"


class BadStepsError(BraidError):
    """More bad steps than `train.bad_steps` allows."""

    status = BAD_STEPS


@dataclass(frozen=True)
class BadStepsConfig:
    """skip: steps with a gradient that is not finite that are left out in any `window` of steps; one more stops the run."""

    skip: int = 10
    window: int = 1000

    def check(self, where: str) -> None:
        """Raises ConfigError."""
        if not 0 <= self.skip < self.window:
            raise ConfigError(
                f"{where}.skip ({self.skip}) must be at least 0 and less than {where}.window ({self.window}); 0 stops at the first"
            )


class BadSteps:
    """Counts those of this start."""

    def __init__(self, config: BadStepsConfig):
        self.config = config
        self.steps: deque[int] = deque()

    def too_many(self, step: int) -> bool:
        """Whether this bad step is one more than allowed."""
        self.steps.append(step)
        while self.steps[0] <= step - self.config.window:
            self.steps.popleft()
        return len(self.steps) > self.config.skip


def drop_bad_updates(engine: Any) -> None:
    """From now on the engine leaves out updates whose gradient norm is not finite.

    ZeRO 3 always does, ZeRO 1 and 2 in float32 (DeepSpeed 0.19.8, `step` of stage3.py and stage_1_and_2.py). `check_grad_overflow`
    has them do it in bfloat16 too; its own pass over all gradients is not needed, as the norm says the same.
    """
    if engine.zero_optimization_stage() in (1, 2):
        engine.optimizer.check_grad_overflow = True
        engine.optimizer.check_overflow = lambda **_: None


def dropped(engine: Any, grad_norm: Tensor | None) -> bool:
    """Whether the update that follows or has been made is none. grad_norm: at stage 0, where gradients are taken away here, before
    `engine.step`; None above it, after it.
    """
    if grad_norm is None:
        return bool(engine.optimizer.overflow)
    bad = not bool(torch.isfinite(grad_norm))
    if bad:
        engine.optimizer.zero_grad(set_to_none=True)
    return bad


def append(folder: Path, step: int, rows: tuple[int, int]) -> None:
    """A line of report/bad_steps.jsonl. rows: of the data stream, first and last + 1. One rank calls it."""
    with (folder / NAME).open("a") as file:
        file.write(json.dumps({"step": step, "rows": rows}) + "\n")
