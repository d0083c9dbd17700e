"""Selective scan, token by token: the definition (Mamba, Gu and Dao, arXiv:2312.00752 eq. 2 and alg. 2).

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t        y_t = C_t . h_t        h before a document's start counts as 0

for every channel D with N states each. Step and input are discretised as in the published code: exp for A, Euler for B.
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
    dtype = accumulator(u_BTD.dtype)
    per_group = u_BTD.shape[2] // B_BTGN.shape[2]
    u, dt, A, state = (x.to(dtype) for x in (u_BTD, dt_BTD, A_DN, state_BDN))
    B, C = (x.to(dtype).repeat_interleave(per_group, 2) for x in (B_BTGN, C_BTGN))
    outputs = []
    for t in range(u.shape[1]):
        if starts_BT is not None:
            state = torch.where(starts_BT[:, t, None, None], 0, state)
        state = (dt[:, t, :, None] * A).exp() * state + (dt * u)[:, t, :, None] * B[:, t]
        outputs.append((C[:, t] * state).sum(-1))
    return torch.stack(outputs, 1).to(u_BTD.dtype), state
