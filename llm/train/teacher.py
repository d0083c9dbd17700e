"""The teacher of `train.distill`: its laws, before anything starts, and its weights."""

from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import OmegaConf

from llm.config import build
from llm.cost import training_flops
from llm.errors import CheckpointError, ConfigError
from llm.model import Decoder, ModelConfig, model_kinds
from llm.train import checkpoint_files as files
from llm.train.config import RunConfig
from llm.train.distill import Distillation, replaced_layers
from llm.train.laws import check_sequence
from llm.train.load import filled, load_model, what_it_is
from llm.train.precision import casts_model
from llm.train.run_folder import RunFolder
from llm.train.shards import Pieces

# what braid-import writes beside the weights
IMPORTED = "model.yaml"


def teacher_config(path: Path) -> ModelConfig:
    """The model of a run that has ended, a checkpoint or an import. Raises ConfigError, CheckpointError."""
    if (path / IMPORTED).is_file():
        values = OmegaConf.to_container(OmegaConf.load(path / IMPORTED))
        return build(ModelConfig, values["model"], model_kinds(""))  # type: ignore[index,call-overload,arg-type]
    checkpoint = next(iter(files.checkpoints(RunFolder(path).checkpoints)), path)
    if not (checkpoint / files.PROGRESS).is_file():
        raise CheckpointError(f"train.distill.teacher ({path}) holds no model; name a run, a checkpoint or an import")
    config, info = what_it_is(checkpoint)
    if checkpoint != path and info.step < config.train.steps:
        raise ConfigError(
            f"train.distill.teacher ({path}) is a run at step {info.step} of {config.train.steps}, whose newest checkpoint may be "
            f"another at the next start; name one: {checkpoint}"
        )
    return config.model


def check_teacher(config: RunConfig, world_size: int) -> None:
    """Raise ConfigError, CheckpointError unless the teacher of `train.distill`, if there is one, can teach this model."""
    distill, where = config.train.distill, "train.distill"
    if distill.teacher is None:
        return
    if config.parallel.zero == 3:
        raise ConfigError(f"parallel.zero (3) splits weights, and {where} runs layers by themselves; use parallel.zero=2")
    if config.data.packing == "contiguous":
        raise ConfigError(f"data.packing (contiguous) carries states, and {where}'s teacher keeps none; use concat or bestfit")
    if config.train.z_loss:
        raise ConfigError(f"train.z_loss ({config.train.z_loss}) has no effect with {where}; remove it")
    teacher, student = teacher_config(Path(distill.teacher)), config.model
    try:
        check_sequence(replace(config, model=teacher), world_size)
    except ConfigError as error:
        raise ConfigError(f"{where}.teacher ({distill.teacher}): {error}") from None
    alike = ("width", "depth", "vocab_size") if distill.match == "mixers" else ("vocab_size",)
    for name in alike:
        ours, theirs = getattr(student, name), getattr(teacher, name)
        if ours != theirs:
            raise ConfigError(
                f"model.{name} ({ours}) must be that of {where}.teacher ({theirs}) to match its {distill.match}; "
                "import both from one folder"
            )
    if distill.match == "mixers" and not replaced_layers(student, teacher):
        raise ConfigError(
            f"{where}.match (mixers) teaches layers whose mixers are not the teacher's, and all are; "
            "replace some (braid-import --replace), or use match=logits"
        )
    if distill.match == "mixers" and config.init_from is None and config.branch_from is None:
        raise ConfigError(
            f"{where}.match (mixers) leaves all but the replaced mixers as they start, which must be the teacher's weights; "
            "set init_from to the folder of the model whose layers were replaced"
        )


def flops_per_token(config: RunConfig) -> float:
    """Of training, with the teacher's part. Raises CheckpointError, ConfigError where the teacher is not there."""
    distill, context = config.train.distill, config.data.sequence_length
    if distill.teacher is None:
        return training_flops(config.model, context)
    teacher = teacher_config(Path(distill.teacher))
    taught = replaced_layers(config.model, teacher) if distill.match == "mixers" else ()
    return training_flops(config.model, context, teacher, taught)


def distillation_of(config: RunConfig, device: torch.device) -> Distillation | None:
    """With the teacher's weights read. Raises CheckpointError when they are damaged."""
    path = config.train.distill.teacher
    if path is None:
        return None
    dtype = torch.bfloat16 if casts_model(config) else torch.float32
    if (Path(path) / IMPORTED).is_file():
        pieces = Pieces.read(Path(path), sorted(file.name for file in Path(path).glob("*.safetensors")))
        teacher: Decoder = filled(teacher_config(Path(path)), Pieces.merged([pieces]), device, dtype)
    else:
        teacher, *_ = load_model(path, device, dtype)
    return Distillation(config.train.distill, teacher, config.model)
