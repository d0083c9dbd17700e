"""A run's whole config: what to train, on what, how and over which ranks (laws between its parts: llm/train/laws.py)."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from omegaconf import MISSING

from llm.config import build, merge, read
from llm.data import DataConfig
from llm.data.batch import micro_batches_of
from llm.errors import ConfigError, DataError
from llm.model import ModelConfig, model_kinds
from llm.ops.kernels import KernelsConfig
from llm.parallel import Mode
from llm.train.bad_steps import BadStepsConfig
from llm.train.distill import DistillConfig
from llm.train.optimizer import OPTIMIZERS, AdamWConfig
from llm.train.phase_config import PhaseConfig
from llm.train.schedule import ScheduleConfig
from llm.train.scheduled import EvaluateConfig


@dataclass(frozen=True)
class TrainConfig:
    """How to train.

    steps: of all phases; left out, those of `phases` are counted. phases: none, or stretches of the run with settings of their own.
    batch: sequences per optimizer step, over all ranks. micro_batch: sequences a rank runs at once; null: its whole share.
    clip: largest global gradient norm; null: no clipping. z_loss: factor of the mean of log^2 Z, which keeps logits from drifting;
    in gradients alone, `loss` is without it. precision: `auto` is bf16 where the device computes in it, else fp32.
    compile_blocks: whether blocks go through `torch.compile` (llm/compile.py).
    log_every, validate_every, checkpoint_every: steps; 0 validates or saves at the end only. keep_last: checkpoints kept, besides
    those of each `keep_every`-th step (0: of none). checkpoint_async: they are written while training goes on.
    max_minutes: the run stops in time to save within so many; null: no budget. hang_minutes: a step that takes longer ends the run
    with every rank's stacks, other phases have three times as long; 0: never.
    validation_sequences: at most so many of the held-out split; null: all. peak_flops: FLOP/s of one rank's device; null: measured.
    """

    steps: int = MISSING
    batch: int = MISSING
    micro_batch: int | None = None
    optimizer: Any = field(default_factory=AdamWConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    clip: float | None = 1.0
    z_loss: float = 0.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    activation_checkpointing: bool = False
    compile_blocks: bool = False
    log_every: int = 10
    validate_every: int = 0
    validation_sequences: int | None = None
    checkpoint_every: int = 0
    keep_last: int = 2
    keep_every: int = 0
    checkpoint_async: bool = True
    peak_flops: float | None = None
    tensorboard: bool = True
    max_minutes: float | None = None
    hang_minutes: float = 15.0
    bad_steps: BadStepsConfig = field(default_factory=BadStepsConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    phases: list[PhaseConfig] = field(default_factory=list)

    def check(self) -> None:
        """Raises ConfigError."""
        for name in ("steps", "batch", "log_every", "keep_last"):
            if getattr(self, name) < 1:
                raise ConfigError(f"train.{name} ({getattr(self, name)}) must be at least 1")
        for name in ("validate_every", "checkpoint_every"):
            if getattr(self, name) < 0:
                raise ConfigError(f"train.{name} ({getattr(self, name)}) must not be negative; 0 is at the end only")
        if self.keep_every and (self.keep_every < 0 or not self.checkpoint_every or self.keep_every % self.checkpoint_every):
            raise ConfigError(
                f"train.keep_every ({self.keep_every}) must be a multiple of train.checkpoint_every ({self.checkpoint_every}), "
                "which says when there are checkpoints to keep; 0 keeps train.keep_last alone"
            )
        for name in ("micro_batch", "validation_sequences", "clip", "peak_flops", "max_minutes"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"train.{name} ({value}) must be finite and positive, or null")
        if not 0 <= self.hang_minutes < math.inf:
            raise ConfigError(
                f"train.hang_minutes ({self.hang_minutes}) must be finite and not negative; 0 lets a run hang for ever"
            )
        if not 0 <= self.z_loss < math.inf:
            raise ConfigError(f"train.z_loss ({self.z_loss}) must be finite and not negative; 0 switches it off, PaLM has 1e-4")
        self.optimizer.check("train.optimizer")
        self.schedule.check("train.schedule", self.steps)
        self.evaluate.check("train.evaluate")
        self.bad_steps.check("train.bad_steps")
        self.distill.check("train.distill")
        if self.bad_steps.then == "rollback" and not self.checkpoint_every:
            raise ConfigError(
                "train.bad_steps.then (rollback) goes back to a checkpoint, and train.checkpoint_every (0) makes none before the "
                "end; set train.checkpoint_every, or train.bad_steps.then=stop"
            )


@dataclass(frozen=True)
class ParallelConfig:
    """zero: what the ranks split among them — 1: optimizer states, 2: and gradients, 3: and weights; 0: nothing. offload: what is
    kept in host memory: `optimizer`, float32 masters and states, updated there.

    sequence: neighbouring ranks that split every sequence among them. mode: how layers cross from rank to rank, all `heads`, by
    `state`, `pipelined`, or each as is cheapest (llm/parallel/crossing.py).
    """

    zero: int = 1
    offload: Literal["none", "optimizer"] = "none"
    sequence: int = 1
    mode: Mode = "auto"

    def check(self) -> None:
        """Raises ConfigError."""
        if self.sequence < 1:
            raise ConfigError(f"parallel.sequence ({self.sequence}) must be at least 1; 1 splits no sequence")
        if self.sequence == 1 and self.mode != "auto":
            raise ConfigError(f"parallel.mode ({self.mode}) has no effect with parallel.sequence=1; remove it")
        if self.zero not in (0, 1, 2, 3):
            raise ConfigError(f"parallel.zero ({self.zero}) must be one of 0, 1, 2, 3")
        if self.offload != "none" and self.zero == 0:
            raise ConfigError(
                f"parallel.offload ({self.offload}) needs ZeRO, which parallel.zero=0 is without; set parallel.zero=1"
            )


@dataclass(frozen=True)
class RunConfig:
    """A run: `runs`/`name` is its folder.

    init_from: a run, checkpoint or folder of safetensors whose weights it starts from; null: from the seed. grow_vocab: it may have
    fewer rows of vocabulary than the model. branch_from: a run or checkpoint that it goes on from (llm/train/branch.py).
    """

    name: str = MISSING
    runs: str = "runs"
    branch_from: str | None = None
    seed: int = 0
    init_from: str | None = None
    grow_vocab: bool = False
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    kernels: KernelsConfig = field(default_factory=KernelsConfig)


KINDS = {**model_kinds("model"), "train.optimizer": OPTIMIZERS}


def load_config(words: Sequence[str]) -> RunConfig:
    """`FILE.yaml... key.path=value...` -> RunConfig. Raises ConfigError."""
    return build_config(read(words))


def build_config(values: Mapping[str, Any]) -> RunConfig:
    """A RunConfig from plain keys and values. Raises ConfigError."""
    train = values.get("train")
    train = train if isinstance(train, Mapping) else {}
    phases = train.get("phases")
    for k, phase in enumerate(phases if isinstance(phases, list) else []):
        # for the sentences, which would not tell which phase is meant
        with naming(k):
            build(PhaseConfig, phase if isinstance(phase, Mapping) else {"settings": phase}, {})
    if not phases or "steps" in train:
        return build(RunConfig, values, KINDS)
    config = build(RunConfig, {**values, "train": {**train, "steps": 0}}, KINDS)
    return replace(config, train=replace(config.train, steps=sum(steps_of_phases(config, configs_of_phases(config)))))


def configs_of_phases(config: RunConfig) -> list[RunConfig]:
    """What holds in each phase; a run without phases is one. Raises ConfigError."""
    return [config_of_phase(config, k) for k in range(len(config.train.phases))] or [config]


def config_of_phase(config: RunConfig, k: int) -> RunConfig:
    """What holds in phase k; a run without phases is one. Raises ConfigError."""
    if not config.train.phases:
        return config
    phase, plain = config.train.phases[k], replace(config, train=replace(config.train, phases=[]))
    if not any(phase.settings.values()):
        return plain
    values = asdict(plain)
    if "mixture" in phase.data:
        # other weights, not more of them
        values["data"]["mixture"] = None
    with naming(k):
        found = build_config(merge(values, phase.settings))
    phase.check(f"train.phases[{k}]")
    return found


def steps_of_phases(config: RunConfig, configs: Sequence[RunConfig]) -> list[int]:
    """The steps of each phase. configs: of the phases. Raises ConfigError."""
    phases, total = config.train.phases, config.train.steps
    found: list[int] = []
    for k, (phase, own) in enumerate(zip(phases, configs, strict=False)):
        # of settings that are not checked yet
        steps = phase.count(f"train.phases[{k}]", max(1, own.train.batch * own.data.sequence_length))
        if steps is None and k + 1 < len(phases):
            raise ConfigError(f"train.phases[{k}] needs steps or tokens; only the last phase can go on to train.steps without")
        if steps is None and total <= sum(found):
            raise ConfigError(
                f"train.steps ({total or 'not set'}) must be more than the {sum(found)} steps of the phases before the last, which "
                f"has neither steps nor tokens; give it one of them, or set train.steps={sum(found) + 1} or more"
            )
        found.append(total - sum(found) if steps is None else steps)
    if phases and total not in (0, sum(found)):
        raise ConfigError(
            f"train.steps ({total}) must be the {sum(found)} steps that train.phases have together; set "
            f"train.steps={sum(found)}, or leave steps and tokens of the last phase out, which then takes the rest"
        )
    return found or [total]


@contextmanager
def naming(k: int) -> Iterator[None]:
    """Errors inside say that they are of phase k."""
    try:
        yield
    except (ConfigError, DataError) as error:
        raise type(error)(f"train.phases[{k}]: {error}") from None


def micro_batch_of(config: RunConfig, world_size: int) -> int:
    """Sequences that a rank runs at once, or its part of them."""
    return config.train.micro_batch or math.ceil(config.train.batch / data_ranks(config, world_size))


def data_ranks(config: RunConfig, world_size: int) -> int:
    """Groups of ranks that read sequences of their own."""
    return world_size // config.parallel.sequence


def accumulation_of(config: RunConfig, world_size: int) -> int:
    """Micro-batches per rank and optimizer step."""
    return micro_batches_of(config.train.batch, data_ranks(config, world_size), micro_batch_of(config, world_size))


def repeated_reductions(config: RunConfig, world_size: int) -> list[str]:
    """What accumulation costs where each micro-batch's gradients are split among the ranks at once."""
    count = accumulation_of(config, world_size)
    if config.parallel.zero != 2 or count == 1 or world_size == 1:
        return []
    return [f"parallel.zero=2 sends gradients after each of {count} micro-batches; parallel.zero=1 sends them once, but holds them"]
