"""Fast weights of one matrix per head as a compiled loop on the CPU; the loop: `loop.cpp`. Definition: `naive.py`.

Runs of tokens that share a chunk go one after the other, each in the cache; documents need no padding. A memory of several matrices
goes in chunks.
"""

from typing import Any

import torch
from torch import Tensor

from llm.ops import compiled
from llm.ops.memory import chunk as in_chunks
from llm.ops.memory.layout import counted_chunks, numbered
from llm.ops.memory.naive import Memory, Weights, counted
from llm.state import accumulator

SOURCE = "memory/loop.cpp"


def memory(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    log_keep_BTH: Tensor,
    log_momentum_BTH: Tensor,
    step_BTH: Tensor,
    initial: Weights,
    state: Memory,
    position_BT: Tensor | None = None,
    *,
    chunk: int,
    chunks: int | None = None,
) -> tuple[Tensor, Memory]:
    """(y `[B, T, H, V]` in v's dtype, the memory after the last token). Arguments: as in `naive.memory`, and `layout`'s chunks."""
    streams = (q_BTHK, k_BTHK, v_BTHV, log_keep_BTH, log_momentum_BTH, step_BTH)
    if len(initial) > 1:
        return in_chunks.memory(*streams, initial, state, position_BT, chunk=chunk, chunks=chunks)
    dtype = accumulator(v_BTHV.dtype)
    exact = [x.to(dtype).contiguous() for x in (*streams, *initial, *(part[0] for part in state))]
    position = counted(position_BT, v_BTHV).contiguous()
    runs = counted_chunks(numbered(position, chunk)) if chunks is None else chunks
    y, *after = _Runs.apply(*exact, position, chunk, runs)
    return y.to(v_BTHV.dtype), Memory(*((part,) for part in after))


def _sizes(k: Tensor, v: Tensor) -> tuple[int, ...]:
    """B, T, H, K, V."""
    return *k.shape, v.shape[3]


class _Runs(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q, k, v, log_keep, log_momentum, step, initial, start, weights, momentum, position, chunk, runs):
        streams = (q, k, v, log_keep, log_momentum, step)
        sizes = (*_sizes(k, v), chunk, runs)
        y, after = torch.empty_like(v), [torch.empty_like(start) for _ in range(3)]
        kept = start.new_empty(*start.shape[:2], runs, 2, *start.shape[2:])
        given = (*streams, initial, start, weights, momentum, position)
        compiled.call(SOURCE, "forward", v.dtype, *given, y, *after, kept, *sizes)
        ctx.save_for_backward(*streams, start, position, kept)
        ctx.sizes = sizes
        return y, *after

    @staticmethod
    def backward(ctx: Any, dy, *dafter):
        *streams, start, position, kept = ctx.saved_tensors
        dstreams, dmatrices = [torch.empty_like(x) for x in streams], [torch.empty_like(start) for _ in range(4)]
        given = (*streams, start, position, kept, *(d.contiguous() for d in (dy, *dafter)))
        compiled.call(SOURCE, "backward", dy.dtype, *given, *dstreams, *dmatrices, *ctx.sizes)
        dinitial, *dstate = dmatrices
        return *dstreams, dinitial.sum(0), *dstate, None, None, None
