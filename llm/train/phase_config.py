"""A phase of a run as its config names it: how long it is, and what differs in it from the run's settings.

```yaml
train:
  phases:
    - {name: stable, steps: 8000}
    - {name: annealing, tokens: 2_000_000_000, data: {mixture: {web: 0.3, books: 0.7}}}
    - name: long
      tokens: 500_000_000
      data: {sequence_length: 8192}
      train: {batch: 64}
      model: {layers: {a: {mixer: {rope_theta: 500000}}}}
```
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from llm.errors import ConfigError

SECTIONS = ("model", "data", "train", "parallel")
# What a phase may set, and all below it; the rest is of the whole run.
OF_A_PHASE = (
    "model",
    "data.manifest",
    "data.mixture",
    "data.sequence_length",
    "data.packing",
    "data.lanes",
    "train.batch",
    "train.micro_batch",
    "train.schedule",
    "train.optimizer",
    "train.clip",
    "train.z_loss",
    "train.activation_checkpointing",
    "parallel.zero",
    "parallel.sequence",
    "parallel.mode",
)


@dataclass(frozen=True)
class PhaseConfig:
    """steps, tokens: its length, one of them; the last phase may do without, and then goes on to `train.steps`. name: for people.

    model, data, train, parallel: settings that hold in this phase, by their names in the run's config. `data.mixture` replaces the
    run's, `train.schedule` is the phase's own, counted from its beginning; without it the run's goes on.
    """

    name: str = ""
    steps: int | None = None
    tokens: int | None = None
    model: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    parallel: dict[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, dict[str, Any]]:
        """What differs, by section."""
        return {section: getattr(self, section) for section in SECTIONS}

    def check(self, where: str) -> None:
        """Raise ConfigError for a setting that is of the whole run."""
        for path in leaves(self.settings):
            if not any(path == name or path.startswith(f"{name}.") for name in OF_A_PHASE):
                raise ConfigError(f"{where}.{path} is a setting of the whole run; set {path} outside of train.phases")

    def count(self, where: str, tokens_per_step: int) -> int | None:
        """Its steps; None where the phase says neither steps nor tokens. Raises ConfigError."""
        if self.steps is not None and self.tokens is not None:
            raise ConfigError(f"{where} has steps ({self.steps}) and tokens ({self.tokens}); give one of them")
        for name, value in (("steps", self.steps), ("tokens", self.tokens)):
            if value is not None and value < 1:
                raise ConfigError(f"{where}.{name} ({value}) must be at least 1; leave out a phase that is not wanted")
        if self.tokens is None:
            return self.steps
        steps, over = divmod(self.tokens, tokens_per_step)
        if over:
            near = " or ".join(f"{n * tokens_per_step}" for n in (steps, steps + 1) if n)
            raise ConfigError(
                f"{where}.tokens ({self.tokens}) must be whole steps of {tokens_per_step} tokens (train.batch x "
                f"data.sequence_length); use {near}"
            )
        return steps


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    """Dotted paths."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
