"""Bad steps: those whose gradient is not finite, and spikes. How many are left out, and what one too many leads to."""

import json
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llm.errors import BraidError, ConfigError
from llm.train.exits import BAD_STEPS
from llm.train.spikes import Limits, SpikeConfig, Spikes

NAME = "bad_steps.jsonl"
NOT_FINITE = "its gradient is not finite"
# how often the run may have gone back, counted in the same `window` of steps as bad ones
ROLLBACKS = 3


class BadStepsError(BraidError):
    """More bad steps than `train.bad_steps` allows."""

    status = BAD_STEPS


@dataclass(frozen=True)
class BadStepsConfig:
    """skip: bad steps that are left out in any `window` of steps. then: what one more leads to, `stop`, or `rollback` to the newest
    whole checkpoint, behind which the data up to the bad step are never read; at most `max_rollbacks` of them in any `window`.
    spike: which finite steps are bad.
    """

    skip: int = 10
    window: int = 1000
    then: Literal["stop", "rollback"] = "stop"
    max_rollbacks: int = ROLLBACKS
    spike: SpikeConfig = field(default_factory=SpikeConfig)

    def check(self, where: str) -> None:
        """Raises ConfigError."""
        if not 0 <= self.skip < self.window:
            raise ConfigError(
                f"{where}.skip ({self.skip}) must be at least 0 and less than {where}.window ({self.window}); "
                f"0 leads to {where}.then at the first"
            )
        if self.then == "stop" and self.max_rollbacks != ROLLBACKS:
            raise ConfigError(
                f"{where}.max_rollbacks ({self.max_rollbacks}) has no effect without {where}.then=rollback; remove it"
            )
        if self.max_rollbacks < 1:
            raise ConfigError(f"{where}.max_rollbacks ({self.max_rollbacks}) must be at least 1; {where}.then=stop never goes back")
        self.spike.check(f"{where}.spike")


class BadSteps:
    """The verdicts on steps, from values that all ranks have alike. Checkpoints keep what they hang on."""

    def __init__(self, config: BadStepsConfig):
        self.config, self.spikes = config, Spikes(config.spike)
        self.steps: deque[int] = deque()

    def limits(self, step: int) -> Limits:
        return self.spikes.limits(step)

    def good(self, loss: Any, grad_norm: Any) -> None:
        """A step that was not bad. Reads the values where spikes are judged."""
        if self.config.spike.factors:
            self.spikes.add({"loss": math.nan if loss is None else float(loss), "grad_norm": float(grad_norm)})

    def why(self, step: int, loss: Any, grad_norm: Any) -> str:
        """In words, of a bad step."""
        if not math.isfinite(float(grad_norm)):
            return NOT_FINITE
        limits, usual = self.limits(step), self.spikes.usual()
        values = {"loss": loss, "grad_norm": grad_norm}
        name = next(name for name in self.config.spike.factors if not float(values[name]) <= getattr(limits, name))
        factor, words = self.config.spike.factors[name], name.replace("_", " ")
        return (
            f"its {words} ({float(values[name]):.4g}) is more than {factor:g} times the usual {usual[name]:.4g} "
            f"(train.bad_steps.spike.{name})"
        )

    def too_many(self, step: int, why: str) -> str | None:
        """In words, what this bad step is too many for; None: it is not."""
        skip, window = self.config.skip, self.config.window
        self.steps.append(step)
        while self.steps[0] <= step - window:
            self.steps.popleft()
        if len(self.steps) > skip:
            return f"one more bad step than train.bad_steps.skip ({skip}) allows in {window} steps"
        if self.config.spike.at_once and why != NOT_FINITE:
            return "a spike, of which train.bad_steps.spike.at_once allows none"
        return None

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"steps": list(self.steps), "spike": self.spikes.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """As they were at a checkpoint; one of an earlier release holds nothing."""
        self.steps = deque(state.get("steps", ()))
        self.spikes.restore(state.get("spike", {}))


def append(folder: Path, record: dict[str, Any]) -> None:
    """A line of report/bad_steps.jsonl. One rank calls it."""
    with (folder / NAME).open("a") as file:
        file.write(json.dumps(record) + "\n")
