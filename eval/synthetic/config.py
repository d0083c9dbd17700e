"""Settings of a table of architectures and tasks."""

from dataclasses import dataclass, field
from typing import Any

from eval.synthetic.points import HELD_OUT, Point, parsed
from eval.synthetic.tasks import TASKS
from llm.errors import ConfigError, did_you_mean

# where a mixer's settings have no default; a name that is no kind is given with its own
MIXERS_OF_PROBES: dict[str, Any] = {
    "attention": {"kind": "attention", "heads": 2},
    "gru": {"kind": "gru", "heads": 1},
    "lstm": {"kind": "lstm", "heads": 1},
    "mamba": {"kind": "mamba"},
    "mamba2": {"kind": "mamba2", "heads": 4, "state": 16},
    "mlstm": {"kind": "mlstm", "heads": 2},
    "mlstm_paper": {"kind": "mlstm_paper", "heads": 2},
    "retention": {"kind": "retention", "heads": 2},
    "slstm": {"kind": "slstm", "heads": 1},
    "titans": {"kind": "titans", "heads": 2},
}


@dataclass(frozen=True)
class ProbeConfig:
    """tasks: of the table. layers: architectures, each the names of its layers with + between, and @width behind where it has one
    of its own. mixers: of those names, settings that change a kind's own, or, with `kind`, a name of one's own. rates: the one of
    least validation loss is taken. seeds: 0, 1, ... width, hidden, batch, steps, train, tests: instead of the task's own.
    held_out: sequences of each size. processes: at once, of `threads` each. out: the folder of the runs and the report.
    """

    tasks: list[str] = field(default_factory=lambda: ["parity"])
    layers: list[str] = field(default_factory=lambda: ["attention", "slstm"])
    mixers: dict[str, Any] = field(default_factory=dict)
    rates: list[float] = field(default_factory=lambda: [3e-3])
    seeds: int = 3
    width: int | None = None
    hidden: int | None = None
    batch: int | None = None
    steps: int | None = None
    train: list[int] | None = None
    tests: list[int] | None = None
    held_out: int = HELD_OUT
    processes: int = 1
    threads: int = 1
    out: str = "report/probe"

    def check(self) -> None:
        """Raises ConfigError."""
        for name in self.tasks:
            if name not in TASKS:
                raise ConfigError(f"tasks ({name}) is unknown; {did_you_mean(name, TASKS)}")
        for architecture in self.layers:
            for name in parsed(architecture)[0]:
                if name not in self.all_mixers():
                    raise ConfigError(f"layers ({architecture}) names no mixer {name!r}; {did_you_mean(name, self.all_mixers())}")
        for name in ("tasks", "layers", "rates"):
            if not getattr(self, name):
                raise ConfigError(f"{name} is empty; write {name}=[...]")
        for name in ("seeds", "held_out", "processes", "threads", *self.changes()):
            for value in getattr(self, name) if name in ("train", "tests") else [getattr(self, name)]:
                if value < (0 if name == "hidden" else 1):
                    raise ConfigError(f"{name} ({value}) must be at least {0 if name == 'hidden' else 1}")
        if min(self.rates) <= 0:
            raise ConfigError(f"rates ({min(self.rates)}) must be above 0")

    def all_mixers(self) -> dict[str, Any]:
        """By the names that `layers` may use."""
        own = {name: {**MIXERS_OF_PROBES.get(name, {}), **(settings or {})} for name, settings in self.mixers.items()}
        return {**MIXERS_OF_PROBES, **own}

    def changes(self) -> dict[str, Any]:
        """What is set of a task's own settings."""
        given = {name: getattr(self, name) for name in ("width", "hidden", "batch", "steps", "train", "tests")}
        return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items() if value is not None}

    def points(self) -> list[Point]:
        """Every task x architecture x rate x seed; what takes part in a comparison side by side. Raises ConfigError."""
        self.check()
        mixers = self.all_mixers()
        points = []
        for task in self.tasks:
            for seed in range(self.seeds):
                for architecture in self.layers:
                    used = {name: mixers[name] for name in parsed(architecture)[0]}
                    points += [Point(task, architecture, rate, seed, used, self.changes(), self.held_out) for rate in self.rates]
        for point in points:
            point.check()
        return points
