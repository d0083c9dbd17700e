"""What DeepSpeed's engine holds on a rank, in bytes: arithmetic on its buffers, read in DeepSpeed 0.19.8 and measured by the tests.

P: parameters; N: ranks. AdamW keeps two float32 numbers per parameter, Muon one; ZeRO keeps a float32 master of each. What goes to
the host (`parallel.offload=optimizer`) does not count.

| stage | parameters | master, AdamW's moments | gradients | buckets |
|---|---|---|---|---|
| 0 | P | 8 P | P, of autograd | P, flattened, after the last backward pass |
| 1 | P | 12 P / N | P, of autograd; in bf16 as much in float32 beside them | one, in float32 |
| 2 | P | 12 P / N | P / N in float32 | one, in the weights' dtype |
| 3 | P / N, and those gathered | 12 P / N | P / N in float32 | one for each dtype |
"""

from typing import NamedTuple

import torch

from llm.model import Decoder
from llm.train.config import RunConfig
from llm.train.optimizer import parameter_groups

BUCKET = 500_000_000
# two buckets, where reducing one goes on while the other fills
BUCKETS = 2 if torch.cuda.is_available() else 1
# at stage 3, weights gathered at once
GATHERED = 1_000_000_000


class EngineBytes(NamedTuple):
    """parameters, optimizer, always: at any moment. backward: beyond them in backward passes. step: beyond all after the last one.

    waiting: gradients that wait from one micro-batch for the next. builds_up: whether autograd's are there beside them, or, in a
    step of one micro-batch, instead.
    """

    parameters: int
    optimizer: int
    always: int
    backward: int
    step: int
    waiting: int
    builds_up: bool


def bucket_size(parameters: int) -> int:
    """Numbers in ZeRO's bucket of gradients: never more than there are parameters."""
    return min(BUCKET, parameters)


def engine_bytes(config: RunConfig, decoder: Decoder, ranks: int, accumulation: int) -> EngineBytes:
    """decoder: as the rank has it, on any device."""
    stage, alone = config.parallel.zero, accumulation == 1
    sizes = [(p.numel(), p.element_size()) for p in decoder.parameters()]
    count, own = sum(n for n, _ in sizes), sum(n * size for n, size in sizes)
    master, share, bucket = 4 * count, 4 * count // ranks, BUCKETS * bucket_size(count)
    groups = parameter_groups(config.train.optimizer, decoder)
    moments = sum((4 if group["orthogonal"] else 8) * sum(p.numel() for p in group["params"]) for group in groups)
    if stage == 0:
        return EngineBytes(own, moments, 0, 0, own, own, alone)
    optimizer = (master + moments) // ranks
    if config.parallel.offload == "optimizer":
        optimizer = 0
    if stage == 1:
        casts = own < master
        return EngineBytes(own, optimizer, 0, 4 * bucket, share + casts * alone * master, master, casts or alone)
    if stage == 2:
        return EngineBytes(own, optimizer, 0, (2 if own < master else 4) * bucket, share, share, False)
    bucket *= sum(dtype.itemsize for dtype in {torch.float32, *(p.dtype for p in decoder.parameters())})
    gathered = own * min(1, GATHERED / count)
    return EngineBytes(share + int(gathered), optimizer, share + bucket, 0, 0, 0, False)
