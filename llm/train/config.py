"""A run's whole config: what to train, on what, how and over which ranks; and the laws between its parts."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from omegaconf import MISSING

from llm.config import build, merge, read
from llm.cost import model_cost
from llm.data import DataConfig, Manifest, TokenStream
from llm.data.batch import micro_batches_of
from llm.errors import ConfigError, DataError
from llm.mixers.ops import ops_of
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


def check(config: RunConfig, world_size: int, manifest: Manifest) -> None:
    """Every law that holds between settings, ranks and dataset, before a process group starts. Raises ConfigError, DataError."""
    # with =, the folder would be taken for a setting where the run is resumed
    if not config.name or any(mark in config.name for mark in "/=") or config.name.startswith("."):
        raise ConfigError(f"name ({config.name!r}) names the run's folder; use letters, digits, dashes")
    if config.grow_vocab and config.init_from is None:
        raise ConfigError("grow_vocab (true) has no effect without init_from; remove it")
    check_ranks(config, world_size)
    config.data.check("data")
    if config.data.packing == "contiguous":
        check_carried(config.model)
    vocabulary = manifest.tokenizer.vocabulary
    if config.model.vocab_size < vocabulary:
        raise ConfigError(
            f"model.vocab_size ({config.model.vocab_size}) must hold the {vocabulary} ids of {manifest.tokenizer_path}; "
            f"set model.vocab_size={vocabulary}"
        )
    # refuses an empty split, sources shorter than a sequence, and settings of the order that cannot work
    TokenStream(manifest, "train", config.data, config.seed, config.train.batch)


def check_ranks(config: RunConfig, world_size: int) -> None:
    """The laws between model, settings of training and ranks, whatever the dataset. Raises ConfigError."""
    config.model.check("model")
    config.train.check()
    config.parallel.check()
    check_sequence(config, world_size)
    _check_batch(config.train, data_ranks(config, world_size))
    if config.train.precision == "bf16" and config.parallel.zero == 0:
        raise ConfigError(
            "train.precision (bf16) needs float32 master weights, which ZeRO stage 0 does not keep; "
            "set parallel.zero=1, or train.precision=fp32"
        )
    if config.train.compile_blocks and config.parallel.zero == 3:
        raise ConfigError(
            "train.compile_blocks (true) traces blocks with their weights, which parallel.zero (3) gathers in hooks around each "
            "part of a block; use parallel.zero=1, or train.compile_blocks=false"
        )
    if config.parallel.offload != "none" and config.train.optimizer.kind == "muon":
        raise ConfigError(
            f"parallel.offload ({config.parallel.offload}) keeps gradients in host memory, where Muon's ranks cannot exchange "
            "matrices; use train.optimizer.kind=adamw, or parallel.offload=none"
        )


def check_sequence(config: RunConfig, world_size: int) -> None:
    """The laws of sequences that are split over ranks. Raises ConfigError."""
    parallel, tokens = config.parallel, config.data.sequence_length
    size = parallel.sequence
    if size == 1:
        return
    if world_size % size:
        works = [n for n in range(1, world_size + 1) if world_size % n == 0]
        raise ConfigError(f"parallel.sequence ({size}) must divide the ranks ({world_size}); use one of {works}")
    if tokens % size:
        near = [n for n in (tokens // size * size, -(-tokens // size) * size) if n]
        raise ConfigError(
            f"data.sequence_length ({tokens}) must be a multiple of parallel.sequence ({size}); use {' or '.join(map(str, near))}"
        )
    for name, layer in config.model.layers.items():
        for op in ops_of(layer.mixer, config.model.width):
            where = f"model.layers.{name}.mixer ({layer.mixer.kind})"
            if op.family == "conv" and op.reach is not None and op.reach > tokens // size:
                raise ConfigError(
                    f"{where} looks {op.reach} tokens back, more than the {tokens // size} that a rank holds with "
                    f"parallel.sequence ({size}); use a longer sequence or fewer ranks"
                )
            if parallel.mode == "heads" and op.family != "conv" and op.heads < size:
                works = [n for n in range(1, world_size + 1) if world_size % n == 0 and n <= op.heads]
                raise ConfigError(
                    f"{where} has {op.heads} heads, fewer than the ranks (parallel.sequence {size}) that parallel.mode=heads deals "
                    f"them to; use parallel.sequence in {works}, or parallel.mode=auto"
                )
            if parallel.mode == "state" and not op.affine:
                raise ConfigError(
                    f"{where} has a recurrence ({op.family}) whose state does not compose, so parallel.mode (state) cannot "
                    "split it; use parallel.mode=auto, which takes heads or a pipeline there"
                )


def check_carried(model: ModelConfig) -> None:
    """Raise ConfigError unless the state that is carried from step to step stays as large as it is."""
    far = 1 << 30
    if model_cost(model, far).state_bytes != model_cost(model, 2 * far).state_bytes:
        raise ConfigError(
            "data.packing (contiguous) carries states from step to step, so they must not grow with the document; "
            "give every attention layer a window, or use data.packing=concat or bestfit"
        )


def _check_batch(train: TrainConfig, world_size: int) -> None:
    share = math.ceil(train.batch / world_size)
    if train.batch < world_size:
        raise ConfigError(
            f"train.batch ({train.batch}) must hold a sequence for each of the ranks ({world_size}); use train.batch={world_size}"
        )
    if train.micro_batch and train.micro_batch > share:
        raise ConfigError(
            f"train.micro_batch ({train.micro_batch}) must be at most a rank's share of train.batch ({share} of {train.batch}); "
            f"use train.micro_batch={share}"
        )
