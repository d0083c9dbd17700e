"""From the words of a command line to a finished run: config, laws, run folder, process group, loop."""

import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from llm.compile import check_compiler
from llm.config import is_override
from llm.cost import model_cost
from llm.data import Manifest
from llm.errors import BraidError, ConfigError, DataError
from llm.ops.routes import set_routes
from llm.train.branch import check_branch
from llm.train.checkpoint_files import FILES
from llm.train.config import RunConfig, load_config, naming
from llm.train.exits import Outcome
from llm.train.failures import LostRanks, in_words
from llm.train.guard import PATIENCE, Guard
from llm.train.init_from import check_source
from llm.train.laws import check_ranks
from llm.train.owner import take
from llm.train.phases import Phase, check_phases, manifests_of, newest_step, over, phases_of
from llm.train.precision import resolved
from llm.train.run_folder import AHEAD, FREE, RunFolder
from llm.train.scheduled import Evaluation
from llm.train.startup import StartUp
from llm.train.stop import StopRequest
from llm.train.teacher import check_teacher
from llm.train.world import World, say

Plan = Callable[[RunConfig, RunFolder, World], Evaluation]


def pretrain(words: Sequence[str], plan_evaluation: Plan | None = None) -> Outcome:
    """`FILE.yaml... key.path=value...` starts a run, or goes on with it; `runs/NAME` goes on. Says how it ended.

    plan_evaluation: makes what `train.evaluate` asks for.

    RANK, WORLD_SIZE and LOCAL_RANK are set. Everything that can be refused is refused before the process group starts.

    Raises:
        BraidError: anything that a user can cause.
    """
    began, world, startup = time.monotonic(), World.from_environment(), StartUp()
    startup.done("imports")
    config, folder = plan(words)
    config, why = resolved(config, world.device)
    phases = phases_of(config)
    read = looked_at(phases, folder, world)
    set_routes(config.kernels, world.device)
    if any(phase.config.train.compile_blocks for phase in phases):
        check_compiler("train.compile_blocks (true)", world.device)
    changed = folder.check_same(config)
    folder.check_stop()
    check_sources(config, folder, phases, world.size, reads=world.first)
    planned = plan_evaluation if config.train.evaluate.every else None
    evaluations = [planned and planned(phase.config, folder, world) for phase in phases]
    if planned is None and config.train.evaluate.every:
        raise ConfigError(f"train.evaluate.every ({config.train.evaluate.every}) needs evaluations; start with launch/pretrain.py")
    share_cores(world.device)
    # torch begins anywhere; a checkpoint brings its own
    torch.manual_seed(config.seed + world.rank)
    quiet()
    startup.done("manifest")
    from llm.train.loop import train

    startup.done("imports")
    guard = Guard(folder, world, config.train.hang_minutes, StopRequest(config.train.max_minutes, began))
    hold = take(folder.path) if world.first else None
    connected = world.connect(patience(config))
    try:
        manifests = agree(read, world)
        if world.first:
            folder.write(config, next(filter(None, manifests)))
        world.barrier()
        startup.done("groups")
        parameters = model_cost(config.model, config.data.sequence_length).parameters
        say(
            world,
            f"{folder.path}: {parameters:,} parameters, ZeRO {config.parallel.zero}, {world.size} rank(s) on {world.device.type}",
            why,
            *changed,
            *(map(str, phases) if len(phases) > 1 else ()),
        )
        # signals count from here on, also between phases, until how it ended is told
        with guard, guard.stop:
            if world.first:
                Outcome(None, 0, "training", str(folder.path)).write()
            outcome = train(phases, folder, world, manifests, guard, startup, evaluations)
            if world.first:
                outcome.write()
            # a rank that ends with another status than 0 makes its launcher end the others
            world.barrier()
        say(world, f"{folder.path}: {outcome.sentence}; loss curve in {folder.report / 'loss.png'}")
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
        if hold is not None:
            hold.release()
        if connected:
            world.close()


def looked_at(phases: Sequence[Phase], folder: RunFolder, world: World) -> list[Manifest | None] | None:
    """The datasets of each phase, with all laws checked, on the rank of a node that looks at their files. None on the others, which
    are told later and check what needs no dataset. Raises ConfigError, DataError.
    """
    step = newest_step(folder.checkpoints)
    if world.first or world.first_of_node:
        manifests = manifests_of(phases, step)
        check_phases(phases, world.size, manifests, step, folder.tokenizer)
        return manifests
    for phase in phases:
        if not over(phase, step):
            check_ranks(phase.config, world.size)
    return None


def patience(config: RunConfig) -> float:
    """Minutes that a collective may take: longer than any phase, so that a hang is told with stacks before NCCL ends the rank."""
    train = config.train
    return max(30, PATIENCE * train.hang_minutes + train.evaluate.minutes + 15) if train.hang_minutes else 24 * 60


def agree(manifests: Sequence[Manifest | None] | None, world: World) -> Sequence[Manifest | None]:
    """The datasets of all ranks, also of those that read none. Raise DataError on every rank unless those that did read the same:
    one elsewhere may change while they start.
    """
    first, *others = world.gather(manifests and [manifest and manifest.hash for manifest in manifests])
    for rank, hashes in enumerate(others, 1):
        for a, b in zip(first, hashes or first, strict=True):
            # one that no rank needs may be gone on some nodes
            if a != b and a and b:
                raise DataError(
                    f"data.manifest is {a[:12]} on rank 0 and {b[:12]} on rank {rank}, and must be one dataset; "
                    "start again when its upload is complete, and copies of it are the same on every node"
                )
    return world.tell(manifests)


def plan(words: Sequence[str]) -> tuple[RunConfig, RunFolder]:
    """The config and folder that the words name. Raises ConfigError."""
    folders = [word for word in words if not is_override(word) and Path(word).is_dir()]
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


def check_sources(config: RunConfig, folder: RunFolder, phases: Sequence[Phase], world_size: int, reads: bool = True) -> None:
    """The laws of what a run begins from and learns from. reads: whether this rank looks at the headers of weights.

    Raises ConfigError, CheckpointError.
    """
    # a run that has checkpoints goes on from those, whatever its origin has become
    step = newest_step(folder.checkpoints)
    if not step:
        check_branch(config)
        if reads and config.init_from is not None:
            check_source(config)
    for phase in phases:
        if not over(phase, step):
            with naming(phase.number) if phase.number else nullcontext():
                check_teacher(phase.config, world_size)


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
