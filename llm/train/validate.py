"""Validation: mean loss over the held-out split."""

import math
from collections.abc import Callable
from typing import Any

import torch

from llm.data import HeldOutBatches
from llm.train.world import World

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
