"""Settings of a study."""

import math
from dataclasses import dataclass, field
from typing import Literal

from eval.scaling.fit import FitConfig
from eval.scaling.forms import FORMS
from eval.scaling.ladder import LadderConfig
from eval.scaling.run_folders import FolderConfig
from llm.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class ScalingConfig:
    """What is fitted, and how it is bounded.

    out: folder of the report; null: TABLE-scaling beside the table. forms: null: those that the table can identify. targets: FLOPs
    to predict optima at; null: ten times the largest run. unique: tokens at hand, for optima that repeat them.
    resamples: of the bootstrap. level: of intervals. hold_out: share of the runs, of largest compute, predicted from the others.
    outliers: runs further than `outliers_beyond` times the noise from the Chinchilla fit are named, and kept or dropped.
    """

    out: str | None = None
    forms: list[str] | None = None
    targets: list[float] | None = None
    unique: float | None = None
    resamples: int = 1000
    level: float = 0.95
    hold_out: float = 0.2
    outliers: Literal["keep", "drop"] = "keep"
    outliers_beyond: float = 5.0
    fit: FitConfig = field(default_factory=FitConfig)
    runs: FolderConfig = field(default_factory=FolderConfig)
    ladder: LadderConfig = field(default_factory=LadderConfig)

    def check(self) -> None:
        """Raises ConfigError."""
        for name in self.forms or ():
            if name not in FORMS:
                raise ConfigError(f"forms ({name}) is unknown; {did_you_mean(name, FORMS)}")
        for cost in [*(self.targets or ()), *([] if self.unique is None else [self.unique])]:
            if not 0 < cost < math.inf:
                raise ConfigError(f"targets and unique ({cost:g}) must be positive and finite")
        if not 0 < self.level < 1 or not 0 <= self.hold_out < 1:
            raise ConfigError(
                f"level ({self.level}) and hold_out ({self.hold_out}) must be shares below 1; use level=0.95 hold_out=0.2"
            )
        if self.resamples < 100:
            raise ConfigError(f"resamples ({self.resamples}) must be at least 100; use 1000")
        if not 0 < self.fit.delta < math.inf or self.fit.starts < 1 or self.outliers_beyond <= 0:
            raise ConfigError(
                f"fit.delta ({self.fit.delta}), fit.starts ({self.fit.starts}) and outliers_beyond ({self.outliers_beyond}) "
                "must be positive; leave them out for the defaults"
            )
        if self.runs.accelerators < 1:
            raise ConfigError(f"runs.accelerators ({self.runs.accelerators}) must be at least 1")
        self.ladder.check()
