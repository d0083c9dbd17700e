"""Selective scan in chunks: the fast PyTorch form. Definition: `naive.py`.

All that does not cross time is made for a chunk of tokens at once; across time runs one fused multiply-add per token, on a state
that stays in the cache. The backward pass is written by hand: it keeps the streams and the chunks' incoming states and recomputes
the rest, so memory is that of the streams. At a document's start the factor of the state is set to 0, exactly. Of complex numbers
gradients are PyTorch's: those of a real loss, conjugate.

`elementwise` runs through the tokens of all chunks at once, then from chunk to chunk.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from llm.ops.scan.naive import exact, together

CHUNK = 32


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
        A_DN, B_BTGN, C_BTGN = together(A_DN, B_BTGN, C_BTGN)
    A, state = together(A_DN, state_BDN)
    return _Scan.apply(u_BTD, dt_BTD, A, B_BTGN, C_BTGN, state, starts_BT)


class _Chunk(NamedTuple):
    """A chunk's streams, time first, in the accumulator's dtype; channels as G groups of d = D / G. All after dt may be complex."""

    u: Tensor  # [c, B, G, d]
    dt: Tensor  # [c, B, G, d]
    B: Tensor  # [c, B, G, N]
    C: Tensor  # [c, B, G, N]
    decay: Tensor  # [c, B, G, d, N] exp(dt A), 0 at starts
    input: Tensor  # [c, B, G, d, N] dt u B


def _chunk(first: int, u: Tensor, dt: Tensor, A_GdN: Tensor, B: Tensor, C: Tensor, starts: Tensor | None) -> _Chunk:
    part = slice(first, first + CHUNK)
    _, u, dt, B, C = exact(A_GdN.real, *(x[:, part].transpose(0, 1) for x in (u, dt, B, C)))
    u, dt = (x.unflatten(-1, A_GdN.shape[:2]).contiguous() for x in (u, dt))
    decay = (dt[..., None] * A_GdN).exp_()
    if starts is not None:
        decay.masked_fill_(starts[:, part].T[:, :, None, None, None], 0)
    return _Chunk(u, dt, B, C, decay, (dt * u)[..., None] * B[..., None, :])


def _states(chunk: _Chunk, state: Tensor) -> Tensor:
    """The state after each token of the chunk: `[c, B, G, d, N]`."""
    states = torch.empty_like(chunk.decay)
    for t in range(len(states)):
        state = torch.addcmul(chunk.input[t], chunk.decay[t], state, out=states[t])
    return states


def _read(states: Tensor, C: Tensor) -> Tensor:
    """Re(C . h): `[c, B, G, d]`."""
    return (states @ C[..., None])[..., 0].real


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u, dt, A, B, C, state, starts):
        groups = A.unflatten(0, (B.shape[2], -1))
        state = state.unflatten(1, groups.shape[:2])
        outputs, incoming = [], []
        for first in range(0, u.shape[1], CHUNK):
            chunk = _chunk(first, u, dt, groups, B, C, starts)
            incoming.append(state)
            states = _states(chunk, state)
            outputs.append(_read(states, chunk.C))
            state = states[-1].clone()
        ctx.save_for_backward(u, dt, A, B, C, starts, *incoming)
        return torch.cat(outputs).flatten(2).transpose(0, 1).to(u.dtype), state.flatten(1, 2)

    @staticmethod
    def backward(ctx: Any, dy, dfinal):
        u, dt, A, B, C, starts, *incoming = ctx.saved_tensors
        groups = A.unflatten(0, (B.shape[2], -1))
        dstate, dA = dfinal.unflatten(1, groups.shape[:2]), torch.zeros_like(groups)
        gradients: list[tuple[Tensor, ...]] = []
        for n in reversed(range(len(incoming))):
            chunk = _chunk(n * CHUNK, u, dt, groups, B, C, starts)
            part = dy[:, n * CHUNK : (n + 1) * CHUNK].transpose(0, 1).to(A.real.dtype).unflatten(-1, groups.shape[:2])
            *streams, more, dstate = _chunk_backward(chunk, part, incoming[n], dstate, groups)
            dA += more
            gradients.append(tuple(streams))
        du, ddt, dB, dC = (torch.cat(parts[::-1]).transpose(0, 1) for parts in zip(*gradients, strict=True))
        return (
            du.flatten(2).to(u.dtype),
            ddt.flatten(2).to(dt.dtype),
            dA.flatten(0, 1),
            dB.to(B.dtype),
            dC.to(C.dtype),
            dstate.flatten(1, 2),
            None,
        )


def _chunk_backward(chunk: _Chunk, dy: Tensor, state: Tensor, dstate: Tensor, A_GdN: Tensor) -> tuple[Tensor, ...]:
    """Gradients of u, dt, B, C (time first), of A, and of the incoming state. `dstate`: of the outgoing one."""
    states = _states(chunk, state)
    dC = (dy[..., None, :].to(states.dtype) @ states.conj())[..., 0, :]
    dstates = dy[..., None] * chunk.C.conj()[..., None, :]
    decay = chunk.decay.conj()
    for t in reversed(range(len(states))):
        dstates[t] += dstate
        dstate = decay[t] * dstates[t]
    dscaled = _read(dstates, chunk.B.conj())
    dB = ((chunk.dt * chunk.u)[..., None, :].to(states.dtype) @ dstates)[..., 0, :]
    # of log decay; the decay is 0 at starts, and so is this
    dlog = torch.cat([state[None], states[:-1]]).conj().mul(dstates).mul_(decay)
    ddt = dscaled * chunk.u + (dlog * A_GdN.conj()).sum(-1).real
    dA = torch.einsum("cbgdn,cbgd->gdn", dlog, chunk.dt.to(dlog.dtype))
    return dscaled * chunk.dt, ddt, dB, dC, dA, dstate


def elementwise(x_BTD: Tensor, decay_BTD: Tensor, state_BD: Tensor, starts_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(h `[B, T, D]` in x's dtype, final state `[B, D]`). Any of the three complex makes all so."""
    x, decay, state = together(x_BTD, decay_BTD, state_BD)
    if starts_BT is not None:
        decay = torch.where(starts_BT[..., None], 0, decay)
    h = _Elementwise.apply(x, decay, state)
    return h if h.is_complex() else h.to(x_BTD.dtype), h[:, -1].clone()


class _Elementwise(torch.autograd.Function):
    """The gradient is the same recurrence from the last token to the first, dh_t = dy_t + conj(a_{t+1}) dh_{t+1}."""

    @staticmethod
    def forward(ctx: Any, x, decay, state):
        h = _recurrence(x, decay, state)
        ctx.save_for_backward(decay, state, h)
        return h

    @staticmethod
    def backward(ctx: Any, dh):
        decay, state, h = ctx.saved_tensors
        after = torch.cat([decay[:, 1:], torch.zeros_like(decay[:, :1])], 1).conj()
        dx = _recurrence(dh.flip(1), after.flip(1), torch.zeros_like(state)).flip(1)
        before = torch.cat([state[:, None], h[:, :-1]], 1)
        return dx, dx * before.conj(), dx[:, 0] * decay[:, 0].conj()


def _recurrence(x: Tensor, decay: Tensor, state: Tensor) -> Tensor:
    """h_t = a_t h_{t-1} + x_t: from 0 in every chunk of c tokens, with the product of a so far; then what comes in from before."""
    T = x.shape[1]
    c = max(1, math.isqrt(T))
    x, decay = (F.pad(s, (0, 0, 0, -T % c)).unflatten(1, (-1, c)).movedim(2, 0) for s in (x, decay))
    h, through = x.clone(), decay.clone()
    for t in range(1, c):
        h[t].addcmul_(decay[t], h[t - 1])
        through[t] *= through[t - 1]
    incoming = [state]
    for last, kept in zip(h[-1].unbind(1), through[-1].unbind(1), strict=True):
        incoming.append(torch.addcmul(last, kept, incoming[-1]))
    h.addcmul_(through, torch.stack(incoming[:-1], 1))
    return h.movedim(0, 2).flatten(1, 2)[:, :T]
