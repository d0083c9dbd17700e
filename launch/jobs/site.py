"""What a cluster is like, and what a job asks of it: `configs/slurm/*.yaml`, one file per site."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from launch.nodes.limits import Limits as Health
from launch.restarts import Limits
from llm.config import load
from llm.errors import ConfigError

WORD = "slurm."


@dataclass(frozen=True)
class Container:
    """kind: `pyxis` is NVIDIA's plugin of srun for enroot. image: a file, or an address where the kind takes one. mounts: FROM:TO.
    options: further ones of `srun` (pyxis) or of `apptainer exec`.
    """

    kind: Literal["none", "pyxis", "apptainer"] = "none"
    image: str | None = None
    mounts: list[str] = field(default_factory=list)
    options: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Site:
    """One rank runs per GPU, or `ranks_per_node` where that is set.

    gpu_option: how GPUs are asked for; null: not at all. memory: per node, as sbatch takes it; "0" is all. hours: the time limit.
    sbatch: further options, as they are. python: in the environment that `modules` and `setup` (lines of bash) make, or in the
    container; null: the one that submits. launcher: what starts the ranks on each node, `srun` itself or DeepSpeed's.
    restart: a job that runs out of time is queued again (`requeue`), or was submitted as a chain of `chain` jobs.
    warning_seconds: before the time limit, when the run is told to save. max_requeues: of one job. max_restarts, same_step: starts
    in a row without a new checkpoint, and failures in a row at one step, after which the run is given up.
    health: what nodes have to have before each start; `health.seconds=0` checks nothing. silence_minutes: without a heartbeat of a
    rank, after which a start is ended; 0: never. start_minutes: until the first heartbeat, as long as models are loaded.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    reservation: str | None = None
    nodes: int = 1
    gpus_per_node: int = 8
    gpu_option: Literal["gpus-per-node", "gres"] | None = "gpus-per-node"
    gpu_type: str | None = None
    ranks_per_node: int | None = None
    cpus_per_rank: int | None = None
    memory: str | None = None
    hours: float = 24.0
    exclusive: bool = False
    sbatch: list[str] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    setup: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    python: str | None = None
    container: Container = field(default_factory=Container)
    launcher: Literal["srun", "deepspeed"] = "srun"
    restart: Literal["requeue", "chain"] = "requeue"
    chain: int = 1
    warning_seconds: int = 180
    max_requeues: int = 100
    max_restarts: int = Limits.restarts
    same_step: int = Limits.same_step
    health: Health = field(default_factory=Health)
    silence_minutes: float = 5.0
    start_minutes: float = 45.0

    @property
    def ranks(self) -> int:
        """On each node."""
        return self.ranks_per_node or self.gpus_per_node or 1

    @property
    def interpreter(self) -> str:
        return self.python or (sys.executable if self.container.kind == "none" else "python")

    def check(self) -> None:
        """Raises ConfigError."""
        if self.gpus_per_node < 0:
            raise ConfigError(f"{WORD}gpus_per_node ({self.gpus_per_node}) must not be negative; 0 runs on CPUs")
        for name in ("nodes", "ranks_per_node", "chain", "warning_seconds", "max_restarts", "same_step"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{WORD}{name} ({value}) must be at least 1")
        if self.start_minutes <= 0:
            raise ConfigError(
                f"{WORD}start_minutes ({self.start_minutes:g}) must leave time to load the model; "
                f"{WORD}silence_minutes=0 watches nothing"
            )
        if 3600 * self.hours <= self.warning_seconds:
            raise ConfigError(
                f"{WORD}hours ({self.hours:g}) must leave time beside {WORD}warning_seconds ({self.warning_seconds}), in which the "
                "run saves; ask for more hours"
            )
        if self.chain > 1 and self.restart != "chain":
            raise ConfigError(
                f"{WORD}chain ({self.chain}) has no effect with {WORD}restart={self.restart}; set {WORD}restart=chain"
            )
        if (self.container.image is None) != (self.container.kind == "none"):
            image, kind = self.container.image, self.container.kind
            raise ConfigError(f"{WORD}container.image ({image}) and {WORD}container.kind ({kind}) go together; set both or neither")
        names = [name for name in self.environment if not name.isidentifier()]
        if names:
            raise ConfigError(f"{WORD}environment.{names[0]} is no name of a variable; use letters, digits and underscores")


def load_site(name: str | Path, words: Sequence[str] = ()) -> Site:
    """A file, or the name of one of `configs/slurm`; then `slurm.key=value` words. Raises ConfigError."""
    text = str(name)
    file = text if text.endswith((".yaml", ".yml")) else f"slurm/{text}.yaml"
    site = load(Site, [file, *(word.removeprefix(WORD) for word in words)], {})
    site.check()
    return site
