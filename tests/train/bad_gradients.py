"""What test_faults runs on each rank: bad steps, with a gradient that is not finite or above a limit, with and without them."""

from typing import Any
from unittest import mock

import torch

from llm.train.config import RunConfig
from llm.train.spikes import Limits

RANKS, STEPS, BAD = 2, 6, (1, 3, 4)
# below any loss and any norm
LIMITS = {3: Limits(0.1), 4: Limits(1e9, 1e-3)}


def configs() -> dict[str, RunConfig]:
    from tests.train.test_zero import config_of

    found = {f"zero {stage}": config_of(stage, 2) for stage in (0, 1, 2, 3)}
    found |= {f"bf16 zero {stage}": config_of(stage, 2, "bf16") for stage in (1, 3)}
    return found | {f"muon zero {stage}": config_of(stage, 2, optimizer={"kind": "muon", "lr": 1e-3}) for stage in (0, 2)}


def trained(rank: int, config: RunConfig, bad: tuple[int, ...]) -> dict[str, Any]:
    """This rank's weights and moments after the steps; at the first in `bad` rank 1 alone has a loss that is NaN, the others are
    beyond their limits. Without any, those of BAD are not made at all.
    """
    from llm.train.deepspeed_config import LossOnly
    from llm.train.engine import create_engine, optimizer_step
    from llm.train.fragments import fragments
    from llm.train.world import World
    from tests.train.test_zero import ROWS, batch_of

    world = World(rank, RANKS, torch.device("cpu"))
    engine = create_engine(config, world)
    forward, step, said = LossOnly.forward, 0, []

    def spoilt(self: LossOnly, *args: Any, **kwargs: Any) -> Any:
        loss = forward(self, *args, **kwargs)
        return loss * torch.nan if rank == 1 and step in bad[:1] else loss

    with mock.patch.object(LossOnly, "forward", spoilt):
        for step in range(1, STEPS + 1):
            if step in BAD and not bad:
                continue
            batches = batch_of(step).split(ROWS // RANKS)[rank].split(2)
            limits = LIMITS.get(step, Limits(1e9, 1e9))
            result = optimizer_step(engine, batches, 1e-3, config.train.clip, world, step=step, limits=limits)
            said.append((result.bad, float(result.grad_norm)))
    held = [(f.name, f.start, f.weight.clone(), {k: v.clone() for k, v in f.state.items()}, f.scalars) for f in fragments(engine)]
    engine.destroy()
    return {"said": said, "held": held}


def pairs(rank: int) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Of each config: with bad steps, and without those."""
    from llm.train.start import quiet
    from llm.train.world import World

    quiet()
    World(rank, RANKS, torch.device("cpu")).connect()
    return {name: (trained(rank, config, BAD), trained(rank, config, ())) for name, config in configs().items()}
