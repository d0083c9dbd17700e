"""Block-diagonal maps of small blocks, such as the query, key and value maps of the first xLSTM paper's mLSTM (4 channels each)."""

from math import gcd

import torch
from torch import Tensor

# A row of 4 channels costs more to move than one of 32 to multiply. For fewer rows, the zeros cost more than they save.
JOINED_CHANNELS = 32
JOINED_ROWS = 64


def blockwise(x_BTD: Tensor, weight: Tensor) -> Tensor:
    """A block-diagonal map: `weight` is `[blocks, out, in]`, the channels are `blocks * in` -> `blocks * out`.

    Over many rows, neighbouring blocks are joined to blocks of up to JOINED_CHANNELS, with zeros between them.
    """
    n, o, i = weight.shape
    if x_BTD[..., 0].numel() >= JOINED_ROWS:
        m = gcd(n, max(1, JOINED_CHANNELS // max(o, i)))
        apart = torch.eye(m, dtype=weight.dtype, device=weight.device)[:, None, :, None]
        n, weight = n // m, (weight.view(n // m, m, o, 1, i) * apart).view(n // m, m * o, m * i)
    return torch.einsum("btni,noi->btno", x_BTD.unflatten(-1, (n, -1)), weight).flatten(-2)
