"""Continuing a run from a checkpoint, whatever ranks, ZeRO stage and degree of sequence parallelism wrote it (`save.py` writes).

Each rank reads the slices that it holds from the files in which they lie, straight into the engine; nothing is
gathered or converted.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from llm.errors import CheckpointError
from llm.train import checkpoint_files as files
from llm.train.fragments import allocate_states, fragments, refresh_weights
from llm.train.shards import Pieces, fill, states_of, weights_of
from llm.train.world import World


def load_checkpoint(engine: Any, checkpoint: Path, world: World) -> dict[str, Any]:
    """Bring the engine and this rank's generators back to a whole checkpoint; its progress. All ranks call it together.

    Raises:
        CheckpointError: its files do not hold every element.
    """
    weights = pieces_of(checkpoint, files.WEIGHTS, world)
    states = pieces_of(checkpoint, files.OPTIMIZER, world)
    allocate_states(engine, states.state_keys(), states.scalars)
    held = fragments(engine)
    fill(weights, weights_of(held))
    fill(states, states_of(held))
    refresh_weights(engine)
    # Other ranks than those that saved go on from their own seed's generators: training draws nothing at random, so no value hangs
    # on them.
    generators = checkpoint / files.generators_of(world.rank)
    if generators.is_file():
        set_rng_state(load_file(generators), world.device)
    return json.loads((checkpoint / files.PROGRESS).read_text())


def pieces_of(checkpoint: Path, folder: str, world: World) -> Pieces:
    """Where the tensors of `weights` or `optimizer` lie: each header is read by one rank. All ranks call it together."""
    names = world.share(files.shards_in(checkpoint, folder))
    return Pieces.merged(world.gather(Pieces.read(checkpoint, names)))


def newest_whole(folder: Path, world: World) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that all ranks together find whole, and a sentence for each newer one that is not.

    Raises:
        CheckpointError: there are checkpoints, but none is whole.
    """
    found = world.gather(files.checkpoints(folder))[0]
    passed_over: list[str] = []
    for checkpoint in found:
        wrong = damage(checkpoint, world)
        if wrong is None:
            return checkpoint, passed_over
        passed_over.append(f"{checkpoint} is not whole ({wrong})")
    if found:
        raise CheckpointError(
            f"no checkpoint in {folder} is whole: {'; '.join(passed_over)}; restore one from a copy, or remove them to start again"
        )
    return None, []


def damage(checkpoint: Path, world: World) -> str | None:
    """What is wrong with a checkpoint, as all ranks say: each reads its share of the files. All ranks call it together."""
    names = sorted(files.read_seal(checkpoint) or {})
    verdicts = world.gather(files.damage(checkpoint, world.share(names)))
    return next((verdict for verdict in verdicts if verdict), None)


def set_rng_state(state: dict[str, torch.Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
