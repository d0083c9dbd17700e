"""Nonlinear recurrence as a compiled loop on the CPU. Definition: `naive.py`; the loop and the cells in C++: `loop.cpp`.

A head runs through all tokens without waiting for another. The gradient of the recurrent matrix is one product over all tokens.
"""

from typing import Any

import torch
from torch import Tensor

from llm.ops import compiled
from llm.ops.recurrent.cells import CELLS, States
from llm.state import accumulator

SOURCE = "recurrent/loop.cpp"
# In these cells r enters apart from x, so each has a gradient of its own.
APART = {"gru"}


def recurrent(
    x_BTHMV: Tensor, R_HMVV: Tensor, bias_HMV: Tensor, state: States, starts_BT: Tensor | None = None, *, cell: str
) -> tuple[Tensor, States]:
    """(h `[B, T, H, V]` in x's dtype, final state: each `[B, H, V]`)."""
    dtype = accumulator(x_BTHMV.dtype)
    x, R, bias, before = (s.to(dtype).contiguous() for s in (x_BTHMV, R_HMVV, bias_HMV, torch.stack(state)))
    h, final = _Recurrent.apply(cell, x, R, bias, before, None if starts_BT is None else starts_BT.contiguous())
    return h.to(x_BTHMV.dtype), final.unbind()


def _sizes(x: Tensor) -> tuple[int, ...]:
    """B, T, H, V."""
    return *x.shape[:3], x.shape[4]


class _Recurrent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, cell, x, R, bias, state, starts):
        B, T, H, V = sizes = _sizes(x)
        y, final, r = x.new_empty(sizes), torch.empty_like(state), torch.empty_like(x)
        kept = x.new_empty(B, T, H, len(CELLS[cell].states) - 1, V)
        compiled.call(SOURCE, f"forward_{cell}", x.dtype, x, R, bias, state, starts, y, final, r, kept, *sizes)
        ctx.cell = cell
        ctx.save_for_backward(x, R, state, starts, y, r, kept)
        return y, final

    @staticmethod
    def backward(ctx: Any, dy, dfinal):
        x, R, state, starts, y, r, kept = ctx.saved_tensors
        dr, dstate = torch.empty_like(x), torch.empty_like(state)
        dx = torch.empty_like(x) if ctx.cell in APART else dr
        given = (x, R, state, starts, y, r, kept, dy.contiguous(), dfinal.contiguous())
        compiled.call(SOURCE, f"backward_{ctx.cell}", x.dtype, *given, dx, dr, dstate, *_sizes(x))
        before = torch.cat([state[0][:, None], y[:, :-1]], 1)
        if starts is not None:
            before.masked_fill_(starts[:, :, None, None], 0)
        dR = torch.einsum("bthmv,bthw->hmvw", dr, before)
        return None, dx, dR, dr.sum((0, 1)), dstate, None
