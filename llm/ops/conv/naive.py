"""Short causal depthwise convolution, token by token: the definition.

y_t = bias + sum_i w_i x_{t-i}, i = 0..W-1, over the tokens of t's own document. The tap that weighs the current token is
`weight_DW[:, -1]`, as in a `Conv1d` padded on the left.
"""

import torch
from torch import Tensor


def conv(
    x_BTD: Tensor, weight_DW: Tensor, bias_D: Tensor | None, tail_BWD: Tensor, starts_BT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(y `[B, T, D]`, tail `[B, W-1, D]`): the tail holds the last inputs of the current document, zero where it has none."""
    tail, outputs = tail_BWD, []
    for t in range(x_BTD.shape[1]):
        if starts_BT is not None:
            tail = torch.where(starts_BT[:, t, None, None], 0, tail)
        window_BWD = torch.cat([tail, x_BTD[:, t, None]], 1)
        y_BD = torch.einsum("bwd,dw->bd", window_BWD, weight_DW)
        outputs.append(y_BD if bias_D is None else y_BD + bias_D)
        tail = window_BWD[:, 1:]
    return torch.stack(outputs, 1), tail
