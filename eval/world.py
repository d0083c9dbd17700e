"""The ranks of an evaluation: without DeepSpeed, and with time to wait for the one that works alone."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed as dist

from llm.errors import BraidError, ConfigError
from llm.train.load import check_device
from llm.train.world import World

PATIENCE = timedelta(days=2)
Done = TypeVar("Done")


@contextmanager
def world_of_ranks(device: str | None = None) -> Iterator[World]:
    """This rank among those of the environment, joined by gloo, and by NCCL where they compute on GPUs.

    Args:
        device: instead of the rank's GPU, or of the CPU where there is none.

    Raises:
        ConfigError: a device that is not here, or one GPU for several ranks.
    """
    world = World.from_environment()
    if device is not None:
        check_device(device)
        if world.size > 1 and device.startswith("cuda:"):
            raise ConfigError(f"device ({device}) would be that of all {world.size} ranks; leave it out, and each takes its own")
        world = world if device == "cuda" else replace(world, device=torch.device(device))
    own = world.size > 1 and not dist.is_initialized()
    if own:
        dist.init_process_group("cpu:gloo,cuda:nccl" if world.device.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield world
    finally:
        if own:
            world.close()


def agreed(world: World, do: Callable[[], Done]) -> Done:
    """What `do` gives on this rank; where one rank fails, all raise its error, and none waits for it in vain."""
    done, error = None, None
    try:
        done = do()
    except BraidError as raised:
        error = raised
    error = next((found for found in world.gather(error) if found is not None), None)
    if error is not None:
        raise error
    return cast(Done, done)
