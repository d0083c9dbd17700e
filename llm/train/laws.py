"""The laws between the parts of a run's config: of model, data, ranks and dataset together. Each part's own stand beside it."""

import math

from llm.cost import model_cost
from llm.data import Manifest, TokenStream
from llm.errors import ConfigError
from llm.mixers.ops import ops_of
from llm.model import ModelConfig
from llm.train.config import RunConfig, TrainConfig, data_ranks


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
