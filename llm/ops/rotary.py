"""Rotary position embedding (RoFormer, arXiv:2104.09864 eq. 34), in the half-split layout of Llama."""

import torch
from torch import Tensor

from llm.state import accumulator


def rotary(x_BTHK: Tensor, position_BT: Tensor, theta: float, channels: int | None = None) -> Tensor:
    """Rotate channel i with channel i + K/2 by the angle position * theta^(-2i / K). K must be even.

    channels: K, where only the first K channels turn and the others stay (GPT-NeoX); all of them unless given.
    """
    if channels is not None and channels < x_BTHK.shape[-1]:
        turned, rest = x_BTHK.split([channels, x_BTHK.shape[-1] - channels], -1)
        return torch.cat([rotary(turned, position_BT, theta), rest], -1)
    K = x_BTHK.shape[-1]
    dtype = accumulator(x_BTHK.dtype)
    frequency = theta ** (-torch.arange(0, K, 2, device=x_BTHK.device, dtype=dtype) / K)
    angle = (position_BT[..., None].to(dtype) * frequency)[:, :, None]
    first, second = x_BTHK.to(dtype).chunk(2, -1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x_BTHK.dtype)
