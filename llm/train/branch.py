"""Branches: a new run that goes on from another's checkpoint with its optimizer and place in the data, under another schedule.

A cooldown from a stable phase, say: `pretrain.py runs/long/config.yaml name=cooled branch_from=runs/long/checkpoints/step-8000
train.steps=10000 train.schedule.cooldown=2000`. Or phases that the first run does not have: what differs must lie ahead.
"""

import json
from dataclasses import replace
from pathlib import Path

from llm.errors import CheckpointError, ConfigError
from llm.train import checkpoint_files as files
from llm.train.checkpoint import damage, newest_whole
from llm.train.config import RunConfig
from llm.train.phases import newest_step
from llm.train.run_folder import AHEAD, FREE, RunFolder, differences_until, read_config, shown
from llm.train.world import World
from llm.whole_file import write_text

POINT = "branch_from.json"
OWN = {"name", "branch_from", "init_from"}


def check_branch(config: RunConfig) -> None:
    """Raise ConfigError when the run computes something else than the one it branches from, CheckpointError when none is there."""
    if config.branch_from is None:
        return
    if config.init_from is not None:
        raise ConfigError(
            f"branch_from ({config.branch_from}) goes on with a run and init_from ({config.init_from}) starts another from its "
            "weights; give one of them"
        )
    origin = Path(config.branch_from)
    old = read_config(origin / files.CONFIG)
    if config.train.precision == "auto":
        # it is not where it starts, which decides
        config = replace(config, train=replace(config.train, precision=old.train.precision))
    differing = differences_until(old, config, _step(origin), FREE | AHEAD | OWN)
    if differing:
        raise ConfigError(
            f"branch_from ({origin}) holds a run with another config ({shown(differing)}); a branch may change "
            "train.steps and train.schedule alone: give it the same settings otherwise, and others in train.phases, from there on"
        )


def starting_point(config: RunConfig, folder: RunFolder, world: World) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint of a run, or the one that it branches from; None: there is none. And what was passed over.

    All ranks call it together. Raises CheckpointError.
    """
    checkpoint, passed_over = newest_whole(folder.checkpoints, world)
    if checkpoint is None and config.branch_from is not None:
        # as the run's first start found it: the origin may have gone on since
        known = folder.path / POINT
        first = json.loads(known.read_text())["checkpoint"] if world.first and known.is_file() else config.branch_from
        point, passed_over = branch_point(world.tell(first if Path(first).is_dir() else config.branch_from), world)
        if world.first:
            write_text(known, json.dumps({"checkpoint": str(point)}) + "\n")
        return point, passed_over
    return checkpoint, passed_over


def _step(path: Path) -> int:
    """Of a checkpoint, or of a run's newest one."""
    progress = path / files.PROGRESS
    return json.loads(progress.read_text())["step"] if progress.is_file() else newest_step(RunFolder(path).checkpoints)


def branch_point(path: str, world: World) -> tuple[Path, list[str]]:
    """The checkpoint that a run folder or checkpoint folder stands for, verified by all ranks together; and what was passed over.

    Raises CheckpointError.
    """
    checkpoint = Path(path)
    if not (checkpoint / files.FILES).is_file():
        newest, passed_over = newest_whole(RunFolder(checkpoint).checkpoints, world)
        if newest is None:
            raise CheckpointError(f"branch_from ({path}) holds no checkpoint; give runs/NAME or runs/NAME/checkpoints/step-N")
        return newest, passed_over
    wrong = damage(checkpoint, world)
    if wrong is not None:
        raise CheckpointError(f"branch_from ({path}) is not whole ({wrong}); branch from another checkpoint of the run")
    return checkpoint, []
