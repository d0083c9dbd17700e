"""Models by their paths: run folders, checkpoints and Hugging Face folders. To find one reads hashes, to load it weights."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from eval.models.braid import BraidModel
from eval.models.language_model import LanguageModel, Recurrent
from eval.models.metadata import metadata
from eval.subject import Subject, Trained
from llm.data import DataConfig
from llm.data.manifest import NAME as MANIFEST
from llm.data.remote import is_remote
from llm.errors import CheckpointError
from llm.ops.kernels import KernelsConfig, say
from llm.ops.routes import set_routes_of_run
from llm.train import checkpoint_files as files
from llm.train.load import find_checkpoint, load_model, what_it_is
from llm.train.phases import Phase, phases_of
from llm.train.run_folder import read_config
from llm.train.world import World

HUGGING_FACE = "config.json"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
MODES = ("parallel", "recurrent")


@dataclass(frozen=True)
class Reading:
    """How models are read. recurrent: token by token from the state. trust: code in a Hugging Face folder may run. split: all ranks
    read text together; otherwise it is dealt out to them. kernels: kernels.FAMILY=NAME, which come before the run's own.
    """

    device: torch.device
    dtype: Literal["float32", "bfloat16", "float64"] = "float32"
    mode: Literal["parallel", "recurrent"] = "parallel"
    trust: bool = False
    split: bool = False
    kernels: tuple[str, ...] = ()

    @property
    def said(self) -> dict[str, str]:
        """For reports."""
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        found = {"device": device, "dtype": self.dtype, "mode": self.mode}
        return found | {"kernels": " ".join(self.kernels)} if self.kernels else found


@dataclass(frozen=True)
class Found:
    """A model that is not loaded yet. folder: a checkpoint, or a Hugging Face folder. origin: what it is, by hashes."""

    name: str
    folder: Path
    report: Path
    origin: dict[str, Any]

    def load(self, world: World, reading: Reading) -> Subject:
        """Raises CheckpointError, DataError, ConfigError."""
        load = _load_hugging_face if (self.folder / HUGGING_FACE).is_file() else _load_checkpoint
        model, dataset, trained = load(self.folder, reading)
        model = Recurrent(model) if reading.mode == "recurrent" else model
        return Subject(self.name, model, self.report, {**self.origin, **reading.said}, world, dataset, trained, split=reading.split)


def find_model(path: str) -> Found:
    """The newest whole checkpoint of a run folder, a checkpoint, or a Hugging Face folder. Raises CheckpointError."""
    folder = Path(path).resolve()
    if (folder / HUGGING_FACE).is_file():
        return _find_hugging_face(folder)
    if not folder.is_dir():
        raise CheckpointError(f"model ({path}) does not exist; give a run folder, a checkpoint or an exported folder")
    checkpoint = find_checkpoint(folder)
    config, info = what_it_is(checkpoint)
    origin = {
        "model": str(checkpoint),
        "run": config.name,
        "step": info.step,
        "tokens_trained": info.tokens,
        "weights": files.digest(checkpoint / files.FILES),
        "tokenizer": _sha256(checkpoint / files.TOKENIZER),
        "dataset": _dataset(config.data.manifest, checkpoint),
    }
    run = checkpoint.parents[1] if (checkpoint.parents[1] / files.CONFIG).is_file() else None
    if run is None:
        return Found(config.name, checkpoint, checkpoint / "report", origin)
    if folder == checkpoint:
        # a checkpoint that was asked for by name reports beside the run's newest one, which has the folder itself
        return Found(f"{config.name}-{checkpoint.name}", checkpoint, run / "report" / checkpoint.name, origin)
    return Found(config.name, checkpoint, run / "report", origin)


def _find_hugging_face(folder: Path) -> Found:
    tokenizer = folder / files.TOKENIZER
    origin = {
        "model": str(folder),
        "weights": hashlib.sha256(
            "".join(map(files.digest, sorted((*folder.glob("*.safetensors"), folder / HUGGING_FACE)))).encode()
        ).hexdigest(),
        "tokenizer": _sha256(tokenizer) if tokenizer.is_file() else None,
        "dataset": None if trained_on(folder) is None else _dataset(trained_on(folder), folder),
    }
    # not into the folder itself, which may be shared, read-only or about to be published
    return Found(folder.name, folder, Path("report") / folder.name, origin)


def _load_checkpoint(checkpoint: Path, reading: Reading) -> tuple[LanguageModel, DataConfig, Trained]:
    decoder, config, info = load_model(checkpoint, reading.device, DTYPES[reading.dtype])
    set_routes_of_run(config.kernels, reading.device, reading.kernels)
    phases = [_located(phase, checkpoint) for phase in phases_of(read_config(checkpoint / files.CONFIG))[: len(info.began)]]
    model = BraidModel(decoder, info.tokenizer, config.data.sequence_length)
    return model, phases[-1].config.data, Trained(phases, info.began, info.consumed, info.quarantine)


def _load_hugging_face(folder: Path, reading: Reading) -> tuple[LanguageModel, DataConfig | None, None]:
    # transformers takes seconds to import
    from eval.models.hugging_face import load_folder

    model = load_folder(folder, reading.device, DTYPES[reading.dtype], reading.trust)
    set_routes_of_run(KernelsConfig(), reading.device, reading.kernels)
    if reading.kernels and not isinstance(model, BraidModel):
        say(f"{' '.join(reading.kernels)}: no effect on {folder}, whose ops are transformers' own")
    dataset = trained_on(folder)
    return model, None if dataset is None else DataConfig(str(located(dataset, folder))), None


def _located(phase: Phase, beside: Path) -> Phase:
    """With the dataset where it is found."""
    data = phase.config.data
    return replace(phase, config=replace(phase.config, data=replace(data, manifest=str(located(data.manifest, beside)))))


def located(dataset: str, beside: Path) -> str | Path:
    """The dataset as the config gives it: an address, or a path from the working directory, else from a folder of the run's."""
    if is_remote(dataset):
        return dataset
    return next((base / dataset for base in (Path(), *beside.parents) if (base / dataset).exists()), Path(dataset))


def trained_on(folder: Path) -> str | None:
    """The dataset that an export of ours was trained on; None: the folder does not say."""
    return metadata(folder).get("config", {}).get("data", {}).get("manifest")


def _dataset(dataset: str, beside: Path) -> str:
    """The hash of a dataset's manifest, or where it is elsewhere its address."""
    path = Path(located(dataset, beside))
    manifest = path / MANIFEST if path.is_dir() else path
    return _sha256(manifest) if manifest.is_file() else str(dataset)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
