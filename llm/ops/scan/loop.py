"""Selective scan as a compiled loop on the CPU. Definition: `naive.py`; the loop: `loop.cpp`.

Forward keeps the streams and the state before every SPAN tokens; backward makes the states between again. Complex states run in
chunks.
"""

from typing import Any

import torch
from torch import Tensor

from llm.ops import compiled
from llm.ops.scan import chunk, summary
from llm.state import accumulator

SOURCE = "scan/loop.cpp"
# The gradients of B and C, sums over a group's channels, are made in at most PARTS parts of at least LANES channels.
SPAN, PARTS, LANES = 32, 16, 16


def scan(
    u_BTD: Tensor,
    dt_BTD: Tensor,
    A_DN: Tensor,
    B_BTGN: Tensor,
    C_BTGN: Tensor,
    state_BDN: Tensor,
    starts_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(y `[B, T, D]` in u's dtype, final state `[B, D, N]`). B and C come in G groups: channel d reads group d // (D / G)."""
    if any(x.is_complex() for x in (A_DN, B_BTGN, C_BTGN)):
        return chunk.scan(u_BTD, dt_BTD, A_DN, B_BTGN, C_BTGN, state_BDN, starts_BT)
    dtype = accumulator(u_BTD.dtype)
    streams = [x.to(dtype).contiguous() for x in (u_BTD, dt_BTD, A_DN, B_BTGN, C_BTGN, state_BDN)]
    y, final = _Scan.apply(*streams, None if starts_BT is None else starts_BT.contiguous())
    return y.to(u_BTD.dtype), final


def scan_adjoint(
    dy_BTD: Tensor, dt_BTD: Tensor, A_DN: Tensor, C_BTGN: Tensor, like_BDN: Tensor, starts_BT: Tensor | None = None
) -> Tensor:
    """What the outputs' gradient alone asks of the incoming state, as in `summary.scan_adjoint`."""
    if like_BDN.is_complex() or A_DN.is_complex() or C_BTGN.is_complex():
        return summary.scan_adjoint(dy_BTD, dt_BTD, A_DN, C_BTGN, like_BDN, starts_BT)
    dy, dt, A, C = (x.to(like_BDN.dtype).contiguous() for x in (dy_BTD, dt_BTD, A_DN, C_BTGN))
    dstate, starts = torch.empty_like(like_BDN), None if starts_BT is None else starts_BT.contiguous()
    compiled.call(SOURCE, "adjoint", dy.dtype, dy, dt, A, C, starts, dstate, *_sizes(dy, C))
    return dstate


def _sizes(u: Tensor, B: Tensor) -> tuple[int, ...]:
    """B, T, G, D / G, N; tokens of a span; parts."""
    batch, tokens, groups, states = B.shape
    channels = u.shape[2] // groups
    return batch, tokens, groups, channels, states, SPAN, min(PARTS, -(-channels // LANES))


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u, dt, A, B, C, state, starts):
        sizes = _sizes(u, B)
        y, final = torch.empty_like(u), torch.empty_like(state)
        kept = state.new_empty(len(u), -(-u.shape[1] // SPAN), *A.shape)
        compiled.call(SOURCE, "forward", u.dtype, u, dt, A, B, C, state, starts, y, final, kept, *sizes)
        ctx.save_for_backward(u, dt, A, B, C, starts, kept)
        return y, final

    @staticmethod
    def backward(ctx: Any, dy, dfinal):
        u, dt, A, B, C, starts, kept = ctx.saved_tensors
        sizes = _sizes(u, B)
        du, ddt, dstate = torch.empty_like(u), torch.empty_like(u), torch.empty_like(dfinal)
        dA, dB, dC = A.new_empty(len(u), *A.shape), B.new_zeros(sizes[-1], *B.shape), C.new_zeros(sizes[-1], *C.shape)
        given = (u, dt, A, B, C, starts, kept, dy.contiguous(), dfinal.contiguous())
        compiled.call(SOURCE, "backward", u.dtype, *given, du, ddt, dA, dB, dC, dstate, *sizes)
        return du, ddt, dA.sum(0), dB.sum(0), dC.sum(0), dstate, None
