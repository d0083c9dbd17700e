"""Selective scan in chunks: the fast PyTorch form. Definition: `naive.py`.

All that does not cross time is made for a chunk of tokens at once; across time runs one fused multiply-add per token, on a state
that stays in the cache. The backward pass is written by hand: it keeps the streams and the chunks' incoming states and recomputes
the rest, so memory is that of the streams. At a document's start the factor of the state is set to 0, exactly.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from llm.state import accumulator

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
    dtype = accumulator(u_BTD.dtype)
    return _Scan.apply(u_BTD, dt_BTD, A_DN.to(dtype), B_BTGN, C_BTGN, state_BDN.to(dtype), starts_BT)


class _Chunk(NamedTuple):
    """A chunk's streams, time first, in the accumulator's dtype: channels as G groups of d = D / G."""

    u: Tensor  # [c, B, G, d]
    dt: Tensor  # [c, B, G, d]
    B: Tensor  # [c, B, G, N]
    C: Tensor  # [c, B, G, N]
    decay: Tensor  # [c, B, G, d, N] exp(dt A), 0 at starts
    input: Tensor  # [c, B, G, d, N] dt u B


def _chunk(first: int, u: Tensor, dt: Tensor, A_GdN: Tensor, B: Tensor, C: Tensor, starts: Tensor | None) -> _Chunk:
    part = slice(first, first + CHUNK)
    u, dt, B, C = (x[:, part].transpose(0, 1).to(A_GdN.dtype) for x in (u, dt, B, C))
    u, dt = (x.unflatten(-1, A_GdN.shape[:2]).contiguous() for x in (u, dt))
    decay = (dt[..., None] * A_GdN).exp_()
    if starts is not None:
        decay.masked_fill_(starts[:, part].T[:, :, None, None, None], 0)
    return _Chunk(u, dt, B, C, decay, (dt * u)[..., None] * B[..., None, :])


def _states(chunk: _Chunk, state: Tensor) -> Tensor:
    """The state after each token of the chunk: `[c, B, G, d, N]`."""
    states = torch.empty_like(chunk.input)
    for t in range(len(states)):
        state = torch.addcmul(chunk.input[t], chunk.decay[t], state, out=states[t])
    return states


def _read(states: Tensor, C: Tensor) -> Tensor:
    """C . h: `[c, B, G, d]`."""
    return (states @ C[..., None])[..., 0]


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
            part = dy[:, n * CHUNK : (n + 1) * CHUNK].transpose(0, 1).to(A.dtype).unflatten(-1, groups.shape[:2])
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
    dC = (dy[..., None, :] @ states)[..., 0, :]
    dstates = dy[..., None] * chunk.C[..., None, :]
    for t in reversed(range(len(states))):
        dstates[t] += dstate
        dstate = chunk.decay[t] * dstates[t]
    dscaled = _read(dstates, chunk.B)
    dB = ((chunk.dt * chunk.u)[..., None, :] @ dstates)[..., 0, :]
    # of log decay; the decay is 0 at starts, and so is this
    before = torch.cat([state[None], states[:-1]])
    dlog = before.mul_(dstates).mul_(chunk.decay)
    ddt = dscaled * chunk.u + (dlog * A_GdN).sum(-1)
    dA = torch.einsum("cbgdn,cbgd->gdn", dlog, chunk.dt)
    return dscaled * chunk.dt, ddt, dB, dC, dA, dstate
