"""The run folder: the contract between training, evaluation, export and people.

runs/NAME/  config.yaml       resolved; resuming needs no other file
            metrics.jsonl     one JSON object per logged step
            checkpoints/      step-N/ and `latest`, which names the newest
            tokenizer.json    of the data trained on
            versions.json     of packages, and the state of git
            outcome.json      how the last start ended (llm/train/exits.py)
            stop              while it is there the run saves and ends, and does not start
            owner.json        the start that trains it now (llm/train/owner.py)
            heartbeat/        where each rank is;  stacks/  of ranks that hung (llm/train/guard.py)
            report/           loss.png, parameters.json, bad_steps.jsonl, quarantine.jsonl, eval-*.json;  tensorboard/
"""

import json
import os
import platform
import subprocess
from dataclasses import asdict, dataclass, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from llm.config import to_yaml
from llm.data import Manifest
from llm.data.remote import CacheConfig
from llm.errors import CheckpointError, ConfigError
from llm.ops.kernels import KernelsConfig
from llm.train.bad_steps import BadStepsConfig
from llm.train.config import RunConfig, build_config
from llm.train.exits import STOP
from llm.train.phases import newest_step, phases_of
from llm.train.schedule import ScheduleConfig
from llm.train.scheduled import EvaluateConfig
from llm.train.spikes import SpikeConfig
from llm.whole_file import write_text

# Settings that change nothing of what is computed, but for the order of sums: they may differ when a run goes on.
FREE = {
    "runs",
    "data.workers",
    "data.prefetch",
    "data.on_corrupt",
    *(f"data.cache.{field.name}" for field in fields(CacheConfig)),
    "train.log_every",
    "train.validate_every",
    "train.validation_sequences",
    "train.checkpoint_every",
    "train.keep_last",
    "train.keep_every",
    "train.checkpoint_async",
    "train.micro_batch",
    "train.activation_checkpointing",
    "train.compile_blocks",
    "parallel.zero",
    "parallel.sequence",
    "parallel.mode",
    *(f"kernels.{field.name}" for field in fields(KernelsConfig)),
    "train.peak_flops",
    *(f"train.evaluate.{field.name}" for field in fields(EvaluateConfig)),
    "train.tensorboard",
    "train.max_minutes",
    "train.hang_minutes",
    *(f"train.bad_steps.{field.name}" for field in fields(BadStepsConfig)),
    *(f"train.bad_steps.spike.{field.name}" for field in fields(SpikeConfig)),
}
# Settings that a run may go on with changed, or branch off with: what lies ahead, not what was computed.
AHEAD = {"train.steps", *(f"train.schedule.{field.name}" for field in fields(ScheduleConfig))}
# beside the packages of a frozen copy of the program: the state of git that it was taken from
FROZEN = "git.json"
PACKAGES = ("braid-lm", "torch", "deepspeed", "omegaconf", "tokenizers", "webdataset", "numpy")


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def tokenizer(self) -> Path:
        return self.path / "tokenizer.json"

    @property
    def versions(self) -> Path:
        return self.path / "versions.json"

    @property
    def report(self) -> Path:
        return self.path / "report"

    @property
    def stop(self) -> Path:
        return self.path / STOP

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @classmethod
    def of(cls, config: RunConfig) -> "RunFolder":
        return cls(Path(config.runs) / config.name)

    def read_config(self) -> RunConfig:
        """Raises CheckpointError when there is no run here, ConfigError when its config is none of this release."""
        return read_config(self.config)

    def check_same(self, config: RunConfig) -> list[str]:
        """A sentence for settings ahead that change. Raise ConfigError when a run is here whose config computes something else, or
        where no run can be.
        """
        if not self.config.is_file():
            self._check_place()
            return []
        # the folder may have been renamed since
        old = replace(self.read_config(), name=config.name)
        if old.train.precision == "auto":
            # it was submitted, and is decided where it starts first
            old = replace(old, train=replace(old.train, precision=config.train.precision))
        differing = differences_until(old, config, newest_step(self.checkpoints))
        if differing:
            raise ConfigError(
                f"{self.path} holds a run with another config ({shown(differing)}); resume that run with "
                f"`pretrain.py {self.path}`, or start a new one with name=ANOTHER"
            )
        ahead = differences(old, config, FREE)
        return [f"{self.path} goes on with changed settings ({shown(ahead)})"] if ahead else []

    def check_stop(self) -> None:
        """Raise ConfigError when the run is not to go on."""
        if self.stop.exists():
            raise ConfigError(f"{self.stop} is there, so this run does not start; remove it, or `braid-submit resume {self.path}`")

    def _check_place(self) -> None:
        """Raise ConfigError when no folder can be made here."""
        there = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            law = "is not writable" if there.is_dir() else "is a file"
            raise ConfigError(f"run folder {self.path} cannot be made: {there} {law}; choose another with runs=FOLDER or name=NAME")

    def write(self, config: RunConfig, manifest: Manifest) -> None:
        """Make the folder, or bring it up to date with this start. One rank calls it."""
        for folder in (self.checkpoints, self.report):
            folder.mkdir(parents=True, exist_ok=True)
        write_text(self.config, to_yaml(config))
        write_text(self.versions, json.dumps(versions(), indent=1) + "\n")
        if not self.tokenizer.is_file():
            # whole or not at all: later starts keep what is there
            write_text(self.tokenizer, manifest.tokenizer_path.read_text())


def read_config(path: Path) -> RunConfig:
    """The config of a run or checkpoint. Raises CheckpointError, ConfigError."""
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist, so {path.parent} is neither a run folder nor a checkpoint; give runs/NAME")
    return build_config(OmegaConf.to_container(OmegaConf.load(path)))  # type: ignore[arg-type]


def differences(old: RunConfig, new: RunConfig, free: set[str] = FREE | AHEAD) -> dict[str, tuple[Any, Any]]:
    """Settings that differ and are not free to, by their dotted path: (old, new)."""
    before, after = flat(asdict(old)), flat(asdict(new))
    keys = [key for key in {**before, **after} if key not in free]
    return {key: (before.get(key), after.get(key)) for key in keys if before.get(key) != after.get(key)}


def differences_until(old: RunConfig, new: RunConfig, step: int, free: set[str] = FREE | AHEAD) -> dict[str, tuple[Any, Any]]:
    """The same, of the phases that have begun at a step and of their ends; those after it lie ahead."""
    found: dict[str, tuple[Any, Any]] = {}
    for was, now in zip(phases_of(old), phases_of(new), strict=False):
        if was.number and was.first >= step:
            break
        where = f"train.phases[{now.number}]" if max(was.of, now.of) > 1 else ""
        differing = differences(was.config, now.config, free)
        found |= {f"{where}.{key}" if where else key: values for key, values in differing.items()}
        if where and was.last != now.last and min(was.last, now.last) < step:
            found[f"{where} ends at step"] = was.last, now.last
    return found


def shown(differing: dict[str, tuple[Any, Any]]) -> str:
    return "; ".join(f"{key}: {old!r} -> {new!r}" for key, (old, new) in differing.items())


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted path -> leaf. Dicts in a list go by number."""
    if isinstance(tree, list | tuple) and tree and all(isinstance(item, dict) for item in tree):
        tree = dict(enumerate(tree))
    if not isinstance(tree, dict):
        return {prefix: tree}
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= flat(value, f"{prefix}.{key}" if prefix else str(key))
    return leaves


def versions() -> dict[str, Any]:
    """Of Python, packages and the checkout."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return {"python": platform.python_version(), "packages": found, "git": git_state(Path(__file__).parents[2])}


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit, and the files that differ from it; None outside a checkout. Of a frozen copy, whichever repository it lies in."""
    if (folder / FROZEN).is_file():
        return json.loads((folder / FROZEN).read_text())
    try:
        commit = _git(folder, "rev-parse", "HEAD").strip()
        changed = _git(folder, "status", "--porcelain").splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "changed": changed}


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=20, check=True).stdout
