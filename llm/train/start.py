"""From the words of a command line to a finished run: config, laws, run folder, process group, loop."""

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from llm.cost import model_cost
from llm.data import Manifest
from llm.errors import BraidError, ConfigError, DataError
from llm.ops import kernels
from llm.ops.routes import ROUTES
from llm.train.branch import check_branch
from llm.train.checkpoint_files import FILES, checkpoints
from llm.train.config import RunConfig, load_config
from llm.train.exits import Outcome
from llm.train.failures import LostRanks, in_words
from llm.train.guard import Guard
from llm.train.init_from import check_source
from llm.train.phases import check_phases, manifests_of, newest_step, phases_of
from llm.train.precision import resolved
from llm.train.run_folder import AHEAD, FREE, RunFolder
from llm.train.scheduled import Evaluation
from llm.train.stop import StopRequest
from llm.train.world import World, say

Plan = Callable[[RunConfig, RunFolder, World], Evaluation]


def pretrain(words: Sequence[str], plan_evaluation: Plan | None = None) -> Outcome:
    """`FILE.yaml... key.path=value...` starts a run, or goes on with it; `runs/NAME` goes on. Says how it ended.

    plan_evaluation: makes what `train.evaluate` asks for.

    RANK, WORLD_SIZE and LOCAL_RANK are set. Everything that can be refused is refused before the process group starts.

    Raises:
        BraidError: anything that a user can cause.
    """
    began, world = time.monotonic(), World.from_environment()
    config, folder = plan(words)
    config, why = resolved(config, world.device)
    phases = phases_of(config)
    manifests = manifests_of(phases)
    check_phases(phases, world.size, manifests, newest_step(folder.checkpoints))
    kernels.check(config.kernels, ROUTES, world.device)
    kernels.use(config.kernels)
    changed = folder.check_same(config)
    check_branch(config)
    planned = plan_evaluation if config.train.evaluate.every else None
    evaluations = [planned and planned(phase.config, folder, world) for phase in phases]
    if planned is None and config.train.evaluate.every:
        raise ConfigError(f"train.evaluate.every ({config.train.evaluate.every}) needs evaluations; start with launch/pretrain.py")
    # one rank is enough to read the headers
    if world.first and config.init_from is not None and not checkpoints(folder.checkpoints):
        check_source(config)
    share_cores(world.device)
    # torch begins anywhere; a checkpoint brings its own
    torch.manual_seed(config.seed + world.rank)
    quiet()
    from llm.train.loop import train

    guard = Guard(folder, world, config.train.hang_minutes, StopRequest(config.train.max_minutes, began))
    connected = world.connect()
    try:
        for manifest in manifests:
            agree(manifest, world)
        if world.first:
            folder.write(config, manifests[0])
        world.barrier()
        parameters = model_cost(config.model, config.data.sequence_length).parameters
        say(
            world,
            f"{folder.path}: {parameters:,} parameters, ZeRO {config.parallel.zero}, {world.size} rank(s) on {world.device.type}",
            why,
            *changed,
            *(map(str, phases) if len(phases) > 1 else ()),
        )
        # signals count from here on, also between phases
        with guard, guard.stop:
            if world.first:
                Outcome(None, 0, "training", str(folder.path)).write()
            outcome = train(phases, folder, world, manifests, guard, evaluations)
        say(world, f"{folder.path}: {outcome.sentence}; loss curve in {folder.report / 'loss.png'}")
        if world.first:
            outcome.write()
        return outcome
    except (BraidError, OSError, RuntimeError) as error:
        known = in_words(error, folder, world.rank, guard.done)
        if known is None:
            raise
        if not isinstance(known, LostRanks):
            # the rank that knows, which may not be the first
            Outcome(known.status, guard.done, str(known), str(folder.path)).write()
        elif not world.first:
            # which may be the one that is gone
            print(f"error: {known}", file=sys.stderr, flush=True)
        if known is error:
            raise
        raise known from error
    finally:
        if connected:
            world.close()


def agree(manifest: Manifest, world: World) -> None:
    """Raise DataError on every rank unless all read the same dataset: one elsewhere may change while they start."""
    hashes = world.gather(manifest.hash)
    other = next((rank for rank, hash_ in enumerate(hashes) if hash_ != hashes[0]), None)
    if other is not None:
        raise DataError(
            f"data.manifest is {hashes[0][:12]} on rank 0 and {hashes[other][:12]} on rank {other}, and must be one dataset; "
            "start again when its upload is complete, and copies of it are the same on every node"
        )


def plan(words: Sequence[str]) -> tuple[RunConfig, RunFolder]:
    """The config and folder that the words name. Raises ConfigError."""
    folders = [word for word in words if "=" not in word and Path(word).is_dir()]
    if not folders:
        if not words:
            raise ConfigError("no config is given; name FILE.yaml... key.path=value..., or a run folder to resume")
        config = load_config(words)
        return config, RunFolder.of(config)
    folder, overrides = RunFolder(Path(folders[0])), [word for word in words if word != folders[0]]
    # of phases, what may change is what lies ahead: `check_same` knows
    refused = [word for word in overrides if word.partition("=")[0] not in FREE | AHEAD and not word.startswith("train.phases")]
    if len(folders) > 1 or refused:
        raise ConfigError(
            f"{folder.path} resumes with its own config, so {(refused or folders)[-1]!r} cannot be given with it; "
            f"leave it out (only {', '.join(sorted(FREE - {'runs'} | AHEAD))} may change)"
        )
    if (folder.path / FILES).is_file():
        run = folder.path.resolve().parents[1]
        raise ConfigError(f"{folder.path} is a checkpoint; resume its run, from the newest that is whole, with `pretrain.py {run}`")
    folder.read_config()
    config = load_config([str(folder.config.resolve()), *overrides])
    # the folder may have been moved or renamed since
    return replace(config, name=folder.path.resolve().name, runs=str(folder.path.parent)), folder


def share_cores(device: torch.device) -> None:
    """The ranks that DeepSpeed's launcher starts on a host (LOCAL_SIZE) would each run a thread per core, and wait for each other.

    torchrun sets OMP_NUM_THREADS and SLURM binds tasks to cores; what a person sets holds.
    """
    ranks = int(os.environ.get("LOCAL_SIZE", "1"))
    if device.type == "cpu" and ranks > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // ranks))


def quiet() -> None:
    """DeepSpeed's own reports only when something is wrong. Before it is imported: it then takes our device without a warning."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # it calls collectives by their old names, at every step
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
