"""Gated linear recurrence with one decay per head, and mLSTM, as compiled loops over chunks on the CPU; the loop: `loop.cpp`.

Definition: `naive.py`; the algebra inside a chunk: `chunk.py`. A chunk stays in the cache, and streams are read and written once.
"""

from typing import Any

import torch
from torch import Tensor

from llm.ops import compiled
from llm.ops.linear import chunk
from llm.ops.linear.mlstm import normalised
from llm.state import accumulator

SOURCE = "linear/loop.cpp"
# A group's gradients of q and k, sums over its heads, are made in at most PARTS parts.
PARTS = 4


def linear(
    q_BTGK: Tensor,
    k_BTGK: Tensor,
    v_BTHV: Tensor,
    log_decay: Tensor,
    state_BHKV: Tensor,
    starts_BT: Tensor | None = None,
    *,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """(y `[B, T, H, V]`, final state `[B, H, K, V]`). Arguments: as in `chunk.linear`, which runs decays per key channel."""
    if log_decay.ndim == 4:
        return chunk.linear(q_BTGK, k_BTGK, v_BTHV, log_decay, state_BHKV, starts_BT, scale=scale)
    if log_decay.ndim == 1:
        log_decay = log_decay.expand(1, q_BTGK.shape[1], -1)
    return _run(q_BTGK, k_BTGK, v_BTHV, log_decay, state_BHKV, starts_BT, scale)


def mlstm(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    log_input_BTH: Tensor,
    log_forget_BTH: Tensor,
    state: tuple[Tensor, Tensor, Tensor],
    starts_BT: Tensor | None = None,
    *,
    scale: float = 1.0,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """(h `[B, T, H, V]` in v's dtype, (C `[B, H, K, V]`, n `[B, H, K]`, m `[B, H]`)). log_forget <= 0."""
    return normalised(_run, q_BTHK, k_BTHK, v_BTHV, log_input_BTH, log_forget_BTH, state, starts_BT, scale)


def _run(q, k, v, log_decay, state, starts, scale, log_input=None, m=None, final_m=None) -> tuple[Tensor, Tensor]:
    dtype = accumulator(v.dtype)
    streams = [x.to(v.dtype).contiguous() for x in (q, k, v)]
    gates = [None if x is None else x.to(dtype).contiguous() for x in (log_decay, log_input)]
    held = None
    if m is not None:
        held = m.new_empty(*m.shape, -(-q.shape[1] // chunk.CHUNK) + 1)
        held[..., 0], held[..., -1] = m, final_m
    starts = None if starts is None else starts.contiguous()
    return _Chunks.apply(*streams, *gates, state.to(dtype).contiguous(), starts, held, float(scale))


def _sizes(q: Tensor, v: Tensor, log_decay: Tensor) -> tuple[int, ...]:
    """B, T, G, H, K, V; parts of a group; rows of the log decays."""
    (B, T, G, K), (H, V) = q.shape, v.shape[2:]
    return B, T, G, H, K, V, min(PARTS, H // G), len(log_decay)


class _Chunks(torch.autograd.Function):
    """`held`: under an input gate, the stabilisers `[B, H, N + 1]` before each chunk and after the last; forward sets the rest."""

    @staticmethod
    def forward(ctx: Any, q, k, v, log_decay, log_input, state, starts, held, scale):
        y, final = torch.empty_like(v), torch.empty_like(state)
        kept = v.new_empty(*state.shape[:2], -(-q.shape[1] // chunk.CHUNK), *state.shape[2:])
        norm = None if held is None else state.new_empty(v.shape[:3])
        gates = (log_decay, log_input, held, starts)
        compiled.call(SOURCE, "forward", v.dtype, q, k, v, *gates, state, y, final, kept, norm, scale, *_sizes(q, v, log_decay))
        ctx.save_for_backward(q, k, v, *gates, y if held is not None else None, kept, norm)
        ctx.scale = scale
        return y, final

    @staticmethod
    def backward(ctx: Any, dy, dfinal):
        q, k, v, *gates, y, kept, norm = ctx.saved_tensors
        log_decay, log_input, _, _ = gates
        sizes = _sizes(q, v, log_decay)
        dq, dk = ((q if sizes[6] == 1 else dfinal).new_empty(sizes[6], *q.shape) for _ in range(2))
        ddecay, dinput = dfinal.new_empty(v.shape[:3]), None if log_input is None else torch.empty_like(log_input)
        dv, dstate = torch.empty_like(v), torch.empty_like(dfinal, memory_format=torch.contiguous_format)
        given = (q, k, v, *gates, y, kept, norm, dy.contiguous(), dfinal.contiguous())
        compiled.call(SOURCE, "backward", v.dtype, *given, dq, dk, dv, ddecay, dinput, dstate, ctx.scale, *sizes)
        dq, dk = (x[0] if len(x) == 1 else x.sum(0) for x in (dq, dk))
        return dq.to(q.dtype), dk.to(k.dtype), dv, ddecay.sum_to_size(log_decay.shape), dinput, dstate, None, None, None
