"""Selective scan, token by token: the definition (Mamba, Gu and Dao, arXiv:2312.00752 eq. 2 and alg. 2).

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t        y_t = C_t . h_t        h before a document's start counts as 0

for every channel D with N states each. Step and input are discretised as in the published code: exp for A, Euler for B. A, B, C and
the state may be complex, with u, dt and y real: y_t = Re(C_t . h_t), as in S4D (arXiv:2206.11893 sec. 3.1; a factor of 2 for states
that stand for conjugate pairs is the caller's).

`elementwise` is the recurrence alone, h_t = a_t h_{t-1} + x_t in every channel, real or complex: what gated layers (HGRN, minGRU)
and LRU (arXiv:2303.06349 eq. 2) cross time with.
"""

import torch
from torch import Tensor

from llm.state import accumulator


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
    per_group = u_BTD.shape[2] // B_BTGN.shape[2]
    u, dt, A, state, B, C = exact(u_BTD, dt_BTD, A_DN, state_BDN, B_BTGN, C_BTGN)
    B, C = (x.repeat_interleave(per_group, 2) for x in (B, C))
    outputs = []
    for t in range(u.shape[1]):
        if starts_BT is not None:
            state = torch.where(starts_BT[:, t, None, None], 0, state)
        state = (dt[:, t, :, None] * A).exp() * state + (dt * u)[:, t, :, None] * B[:, t]
        outputs.append((C[:, t] * state).sum(-1).real)
    return torch.stack(outputs, 1).to(u_BTD.dtype), state


def elementwise(x_BTD: Tensor, decay_BTD: Tensor, state_BD: Tensor, starts_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(h `[B, T, D]` in x's dtype, final state `[B, D]`). Any of the three complex makes all so."""
    x, decay, state = together(x_BTD, decay_BTD, state_BD)
    outputs = []
    for t in range(x.shape[1]):
        if starts_BT is not None:
            state = torch.where(starts_BT[:, t, None], 0, state)
        state = decay[:, t] * state + x[:, t]
        outputs.append(state)
    h = torch.stack(outputs, 1)
    return h if h.is_complex() else h.to(x_BTD.dtype), state


def exact(*streams: Tensor) -> list[Tensor]:
    """Each in the accumulator's dtype of the first, complex where it is complex."""
    dtype = accumulator(streams[0].dtype)
    return [x.to(dtype.to_complex() if x.is_complex() else dtype) for x in streams]


def together(*streams: Tensor) -> list[Tensor]:
    """All in one accumulator dtype, complex if any is."""
    dtype = accumulator(streams[0].real.dtype)
    return [x.to(dtype.to_complex() if any(s.is_complex() for s in streams) else dtype) for x in streams]
