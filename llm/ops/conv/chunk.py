"""Short causal depthwise convolution, all tokens at once: one shifted multiply-add per tap. Definition: `naive.py`."""

import torch
from torch import Tensor
from torch.nn import functional as F


def conv(
    x_BTD: Tensor, weight_DW: Tensor, bias_D: Tensor | None, tail_BWD: Tensor, starts_BT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(y `[B, T, D]`, tail `[B, W-1, D]`)."""
    T, W = x_BTD.shape[1], weight_DW.shape[1]
    inputs = torch.cat([tail_BWD, x_BTD], 1)
    if starts_BT is None:
        y = F.conv1d(inputs.transpose(1, 2), weight_DW[:, None], bias_D, groups=x_BTD.shape[2]).transpose(1, 2)
        return y, tail_of(inputs, None, W)
    reach_BT = _reach(starts_BT, W - 1)
    y = x_BTD * weight_DW[:, -1]
    for lag in range(1, W):
        within = (reach_BT >= lag)[..., None]
        y = y + torch.where(within, inputs[:, W - 1 - lag : W - 1 - lag + T], 0) * weight_DW[:, -1 - lag]
    return (y if bias_D is None else y + bias_D), tail_of(inputs, starts_BT, W)


def tail_of(inputs_BSD: Tensor, starts_BT: Tensor | None, taps: int) -> Tensor:
    """The new tail `[B, W-1, D]`, of the old one and the tokens in one: what is of an ended document is 0."""
    tail = inputs_BSD[:, inputs_BSD.shape[1] - (taps - 1) :]
    if starts_BT is None:
        return tail
    lags = torch.arange(taps - 2, -1, -1, device=tail.device)
    return torch.where((lags <= _reach(starts_BT, taps - 1)[:, -1:])[..., None], tail, 0)


def _reach(starts_BT: Tensor, furthest: int) -> Tensor:
    """How many tokens back each token may look: to its document's start, to the tail's end in the continued document."""
    t = torch.arange(starts_BT.shape[1], device=starts_BT.device)
    return t - torch.where(starts_BT, t, -furthest).cummax(1).values
