"""Nonlinear recurrence with a block-diagonal recurrent matrix, token by token, differentiated by autograd: the definition.

r_t = R h_{t-1} + b        state_t = cell(x_t, r_t, state_{t-1})        a state before a document's start counts as 0
"""

import torch
from torch import Tensor

from llm.ops.recurrent.cells import CELLS, States
from llm.state import accumulator


def recurrent(
    x_BTHMV: Tensor, R_HMVV: Tensor, bias_HMV: Tensor, state: States, starts_BT: Tensor | None = None, *, cell: str
) -> tuple[Tensor, States]:
    """(h `[B, T, H, V]` in x's dtype, final state: each `[B, H, V]`).

    Args:
        x_BTHMV: preactivations of the cell's M gates. R_HMVV: per head and gate, `[to, from]`.
    """
    dtype = accumulator(x_BTHMV.dtype)
    x, R, bias = (s.to(dtype) for s in (x_BTHMV, R_HMVV, bias_HMV))
    outputs = []
    for t in range(x.shape[1]):
        if starts_BT is not None:
            state = tuple(torch.where(starts_BT[:, t, None, None], 0, s) for s in state)
        r = torch.einsum("hmvw,bhw->bhmv", R, state[0]) + bias
        state, _ = CELLS[cell].step(x[:, t], r, state)
        outputs.append(state[0])
    return torch.stack(outputs, 1).to(x_BTHMV.dtype), state
