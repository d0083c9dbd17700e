"""Validation: mean loss over the held-out split."""

import math
from collections.abc import Callable
from typing import Any

import torch

from llm.data import HeldOutBatches, Manifest
from llm.errors import DataError
from llm.train.config import RunConfig, data_ranks, micro_batch_of
from llm.train.grid import place
from llm.train.world import World, say

SPLIT = "validation"


@torch.no_grad()
def validate(engine: Any, batches: HeldOutBatches, world: World, beat: Callable[[], None] = lambda: None) -> dict[str, float]:
    """Nats per token over all ranks, and its exponential. beat: called before each batch."""
    engine.eval()
    loss_sum, scored = torch.zeros((), device=world.device), torch.zeros((), device=world.device)
    for micro_batches in batches:
        beat()
        for batch in micro_batches:
            scored += batch.scored
            batch = batch.to(world.device, non_blocking=True)
            loss_sum += engine(batch.tokens_BT, batch.labels_BT, batch.docs)
    engine.train()
    total, count = world.sum(torch.stack([loss_sum, scored]).double()).tolist()
    loss = total / max(1.0, count)
    return {"validation_loss": loss, "validation_perplexity": math.exp(min(loss, 700.0))}


def held_out_batches(config: RunConfig, world: World, manifest: Manifest) -> HeldOutBatches | None:
    """What `validate` reads; None, and a sentence, where the dataset has no such split."""
    settings, micro = config.train, micro_batch_of(config, world.size)
    try:
        manifest.split(SPLIT)
    except DataError:
        say(world, f"the dataset has no split {SPLIT!r}: training without validation")
        return None
    return HeldOutBatches(
        manifest,
        SPLIT,
        config.data.sequence_length,
        batch=data_ranks(config, world.size) * micro,
        rank=place(config, world)[0],
        ranks=data_ranks(config, world.size),
        micro_batch=micro,
        limit=settings.validation_sequences,
        part=place(config, world)[1],
    )
