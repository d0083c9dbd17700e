"""Evaluations during training: when they are due, and what is handed in to run them.

`llm.train` knows no evaluation: an entry script hands in a `Plan`, which turns a config into an `Evaluation` before anything is
started, so that what it names wrongly is told then.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from llm.errors import ConfigError


@dataclass(frozen=True)
class EvaluateConfig:
    """every: steps; 0: never. tasks: words as `eval/run.py` takes them, tasks or a suite and settings. minutes: for all of them;
    what is not finished by then is left out.
    """

    every: int = 0
    tasks: list[str] = field(default_factory=lambda: ["perplexity"])
    minutes: float = 10.0

    def check(self, where: str) -> None:
        """Raises ConfigError."""
        if self.every < 0:
            raise ConfigError(f"{where}.every ({self.every}) must not be negative; 0 evaluates nothing during training")
        if not 0 < self.minutes < math.inf:
            raise ConfigError(f"{where}.minutes ({self.minutes}) must be positive and finite")


# (engine, step) -> figures for the record of the step, on every rank. All ranks call it together.
Evaluation = Callable[[Any, int], dict[str, float]]
