"""Weights one at a time: read from safetensors when asked for, written shard by shard, so that a model need not fit in memory."""

import json
import pickle
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from llm.errors import CheckpointError

SINGLE, INDEX, ONE_OF = "model.safetensors", "model.safetensors.index.json", "model{suffix}.safetensors"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
SHARD_BYTES = 5 * 10**9


class Shards(Mapping[str, Tensor]):
    """The tensors of a safetensors file, or of a folder's, by name. At most one file is open at a time.

    Raises:
        CheckpointError: none is here, only pickles are, or one is damaged.
    """

    def __init__(self, path: Path):
        self.path = path
        self.files = {path.name: path} if path.is_file() else _files(path)
        self._open: tuple[Path, Any] | None = None
        self.place: dict[str, Path] = {}
        for file in self.files.values():
            self.place |= dict.fromkeys(self._handle(file).keys(), file)

    def _handle(self, file: Path) -> Any:
        if self._open is None or self._open[0] != file:
            self._open = None
            try:
                self._open = file, safe_open(file, "pt")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"{file} is damaged or missing ({error}); fetch it again") from None
        return self._open[1]

    def __getitem__(self, name: str) -> Tensor:
        return self._handle(self.place[name]).get_tensor(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Without reading the tensor."""
        return tuple(self._handle(self.place[name]).get_slice(name).get_shape())

    def __iter__(self) -> Iterator[str]:
        return iter(self.place)

    def __len__(self) -> int:
        return len(self.place)


def _files(folder: Path) -> dict[str, Path]:
    if (folder / INDEX).is_file():
        try:
            names = sorted(set(json.loads((folder / INDEX).read_text())["weight_map"].values()))
        except (ValueError, KeyError, AttributeError):
            raise CheckpointError(f"{folder / INDEX} is damaged; fetch it again") from None
        return {name: folder / name for name in names}
    if (folder / SINGLE).is_file():
        return {SINGLE: folder / SINGLE}
    pickles = sorted(path.name for pattern in PICKLES for path in folder.glob(pattern))
    if pickles:
        raise CheckpointError(
            f"{folder} holds its weights as pickles ({pickles[0]}), which run code when they are loaded; fetch the safetensors, "
            "or pass --allow-pickle if you trust whoever wrote them"
        )
    raise CheckpointError(f"{folder} holds no {SINGLE}; name a folder with a model's weights")


def unpickled(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder's pickles, for callers whose user asked for it; only tensors are loaded, not other objects."""
    files = sorted(path for pattern in PICKLES for path in folder.glob(pattern))
    try:
        return {name: x for file in files for name, x in torch.load(file, map_location="cpu", weights_only=True).items()}
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        law = str(error).splitlines()[0]
        raise CheckpointError(
            f"{folder}: {files[0].name} holds more than tensors, or is damaged ({law}); fetch safetensors"
        ) from None


def write_shards(folder: Path, shapes: Mapping[str, Tensor], get: Callable[[str], Tensor], shard_bytes: int = SHARD_BYTES) -> None:
    """Write the tensors that `get` gives by name; `shapes` are empty ones on the meta device, with their dtypes.

    One shard is in memory at a time. Several have an index, as `transformers` reads it.
    """
    plan = split_torch_state_dict_into_shards(dict(shapes), filename_pattern=ONE_OF, max_shard_size=shard_bytes)
    for file, names in plan.filename_to_tensors.items():
        held = {name: get(name).to(shapes[name].dtype).contiguous() for name in names}
        # safetensors writes for the owner alone; the rest of the folder follows the umask, and so does an empty file
        (folder / file).touch()
        mode = (folder / file).stat().st_mode
        save_file(held, folder / file, metadata={"format": "pt"})
        (folder / file).chmod(mode)
        del held
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")
