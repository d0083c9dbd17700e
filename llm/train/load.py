"""A trained model from its files, outside training: no process group, no DeepSpeed, no pickle."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm.errors import CheckpointError, ConfigError
from llm.init import cast_model
from llm.model import Decoder, ModelConfig
from llm.train import checkpoint_files as files
from llm.train.config import RunConfig, config_of_phase
from llm.train.run_folder import RunFolder, read_config
from llm.train.shards import Pieces, Wanted, fill, same_shapes


@dataclass(frozen=True)
class CheckpointInfo:
    """path: the checkpoint. run: the run folder it lies in, if any. step, tokens: trained so far. tokenizer: its file. began: the
    row at which each phase so far began. consumed: that to which the last has come. quarantine: rows that it was not trained on
    (llm/train/quarantine.py).
    """

    path: Path
    run: Path | None
    step: int
    tokens: int
    tokenizer: Path
    began: tuple[int, ...]
    consumed: int
    quarantine: list[dict[str, Any]]


def load_model(
    run_or_checkpoint: str | Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> tuple[Decoder, RunConfig, CheckpointInfo]:
    """The decoder in eval mode, the run's config, and which checkpoint it is.

    Args:
        run_or_checkpoint: a run folder, of which the newest whole checkpoint is taken, or a checkpoint folder.
        dtype: of the weights; in bfloat16, those whose role is kept in float32 stay so.

    Raises:
        CheckpointError: neither of the two, or damaged. ConfigError: a device that is not here.
    """
    check_device(device)
    checkpoint = find_checkpoint(Path(run_or_checkpoint))
    config, info = what_it_is(checkpoint)
    pieces = Pieces.merged([Pieces.read(checkpoint, files.shards_in(checkpoint, files.WEIGHTS))])
    return filled(config.model, pieces, device, dtype), config, info


def filled(config: ModelConfig, pieces: Pieces, device: torch.device | str, dtype: torch.dtype) -> Decoder:
    """The decoder with the weights of some files, in eval mode; device and dtype as in `load_model`. Raises CheckpointError."""
    with torch.device("meta"):
        model = Decoder(config)
    wrong = same_shapes(pieces, {name: tuple(parameter.shape) for name, parameter in model.named_parameters()})
    if wrong:
        raise CheckpointError(f"{pieces.folder} does not hold the model of its config: {wrong}; take another")
    # before there is memory: files are read piece by piece into the dtype that is wanted
    if dtype == torch.bfloat16:
        cast_model(model)
    else:
        model.to(dtype)
    model.to_empty(device=device)
    fill(pieces, [Wanted(name, 0, parameter.detach().view(-1)) for name, parameter in model.named_parameters()])
    return model.eval()


def what_it_is(checkpoint: Path) -> tuple[RunConfig, CheckpointInfo]:
    """The config that held when a checkpoint was saved, and which one it is."""
    progress = json.loads((checkpoint / files.PROGRESS).read_text())
    run = checkpoint.parents[1] if (checkpoint.parents[1] / files.CONFIG).is_file() else None
    rows = tuple(progress.get("began", [0])), progress["data"]["consumed"], progress.get("quarantine", [])
    info = CheckpointInfo(checkpoint, run, progress["step"], progress["tokens"], checkpoint / files.TOKENIZER, *rows)
    return config_of_phase(read_config(checkpoint / files.CONFIG), progress.get("phase", 0)), info


class CheckpointWeights(Mapping[str, Tensor]):
    """A checkpoint's weights by name, each read when it is asked for."""

    def __init__(self, checkpoint: Path):
        self.pieces = Pieces.merged([Pieces.read(checkpoint, files.shards_in(checkpoint, files.WEIGHTS))])

    def __getitem__(self, name: str) -> Tensor:
        x = torch.empty(self.pieces.shapes[name])
        fill(self.pieces, [Wanted(name, 0, x.view(-1))])
        return x

    def __iter__(self) -> Iterator[str]:
        return iter(self.pieces.shapes)

    def __len__(self) -> int:
        return len(self.pieces.shapes)


def check_device(device: torch.device | str) -> None:
    """Raise ConfigError unless tensors can be made on this device."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        here = ["cpu", *(f"cuda:{k}" for k in range(torch.cuda.device_count()))]
        raise ConfigError(f"device ({device}) is not on this machine; use {' or '.join(here)}") from None


def find_checkpoint(path: Path) -> Path:
    """The checkpoint that a run folder or checkpoint folder stands for, its readable files verified. Raises CheckpointError."""
    path = path.resolve()
    if (path / files.FILES).is_file():
        wrong = damage_of_model(path)
        if wrong:
            raise CheckpointError(f"{path} is not whole ({wrong}); take another checkpoint of the run")
        return path
    found = files.checkpoints(RunFolder(path).checkpoints)
    if not found:
        raise CheckpointError(
            f"{path} holds no checkpoint; give a run folder (runs/NAME) or a checkpoint (runs/NAME/checkpoints/step-N)"
        )
    wrong_ones = []
    for checkpoint in found:
        wrong = damage_of_model(checkpoint)
        if wrong is None:
            return checkpoint
        wrong_ones.append(f"{checkpoint.name}: {wrong}")
    raise CheckpointError(f"no checkpoint of {path} is whole ({'; '.join(wrong_ones)}); restore one from a copy")


def damage_of_model(checkpoint: Path) -> str | None:
    """`damage` of the files that `load_model` and its callers read."""
    return files.damage(checkpoint, [*files.shards_in(checkpoint, files.WEIGHTS), files.PROGRESS, files.CONFIG, files.TOKENIZER])
