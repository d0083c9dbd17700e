"""Nonlinear recurrence as fast as single steps allow: no graph is built in the loop. Definition: `naive.py`.

Each step is one batched product over heads and the cell's few elementwise operations; the backward loop is the cell's own gradient,
and the gradient of the recurrent matrix is one product over all tokens at the end.
"""

from typing import Any

import torch
from torch import Tensor

from llm.ops.recurrent.cells import CELLS, States
from llm.state import accumulator


def recurrent(
    x_BTHMV: Tensor, R_HMVV: Tensor, bias_HMV: Tensor, state: States, starts_BT: Tensor | None = None, *, cell: str
) -> tuple[Tensor, States]:
    """(h `[B, T, H, V]` in x's dtype, final state: each `[B, H, V]`)."""
    dtype = accumulator(x_BTHMV.dtype)
    state = tuple(s.to(dtype) for s in state)
    h, *final = _Recurrent.apply(cell, x_BTHMV, R_HMVV.to(dtype), bias_HMV.to(dtype), starts_BT, *state)
    return h, tuple(final)


class _Recurrent(torch.autograd.Function):
    """Inside, heads come first: `[T, H, B, M, V]`, so that a step is one batched product."""

    @staticmethod
    def forward(ctx: Any, name, x, R, bias, starts, *state):
        cell, (H, M, V, _) = CELLS[name], R.shape
        steps = x.permute(1, 2, 0, 3, 4).to(R.dtype).contiguous()
        from_h, offset = R.permute(0, 3, 1, 2).flatten(2).contiguous(), bias.view(H, 1, M * V)
        state = tuple(s.transpose(0, 1).contiguous() for s in state)
        fresh = None if starts is None else starts.T[:, None, :, None]
        befores, saved, outputs = [], [], []
        for t in range(len(steps)):
            if fresh is not None:
                state = tuple(s.masked_fill(fresh[t], 0) for s in state)
            befores.append(state[0])
            r = torch.baddbmm(offset, state[0], from_h).unflatten(-1, (M, V))
            state, more = cell.step(steps[t], r, state)
            saved.append(more)
            outputs.append(state[0])
        ctx.cell, ctx.saved, ctx.befores, ctx.fresh, ctx.dtype = cell, saved, befores, fresh, x.dtype
        ctx.save_for_backward(R)
        return torch.stack(outputs).permute(2, 0, 1, 3).to(x.dtype), *(s.transpose(0, 1).contiguous() for s in state)

    @staticmethod
    def backward(ctx: Any, dh, *dfinal):
        (R,) = ctx.saved_tensors
        to_h = R.flatten(1, 2)
        douts = dh.permute(1, 2, 0, 3).to(R.dtype)
        dstate = tuple(d.transpose(0, 1) for d in dfinal)
        dxs, drs = [], []
        for t in reversed(range(len(douts))):
            dstate = (dstate[0] + douts[t], *dstate[1:])
            dx, dr, (dh_before, *rest) = ctx.cell.back(ctx.saved[t], dstate)
            dstate = (torch.baddbmm(dh_before, dr.flatten(-2), to_h), *rest)
            if ctx.fresh is not None:
                dstate = tuple(d.masked_fill(ctx.fresh[t], 0) for d in dstate)
            dxs.append(dx)
            drs.append(dr)
        dr = torch.stack(drs[::-1])
        dR = torch.einsum("thbmv,thbw->hmvw", dr, torch.stack(ctx.befores))
        dx = torch.stack(dxs[::-1]).permute(2, 0, 1, 3, 4).to(ctx.dtype)
        return None, dx, dR, dr.sum((0, 2)), None, *(d.transpose(0, 1) for d in dstate)
