"""Short causal depthwise convolution as a compiled loop on the CPU. Definition: `naive.py`; the loop: `loop.cpp`."""

from typing import Any

import torch
from torch import Tensor

from llm.ops import compiled
from llm.state import accumulator

SOURCE = "conv/loop.cpp"


def conv(
    x_BTD: Tensor, weight_DW: Tensor, bias_D: Tensor | None, tail_BWD: Tensor, starts_BT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(y `[B, T, D]`, tail `[B, W-1, D]`)."""
    dtype = accumulator(x_BTD.dtype)
    # the tap of the current token first
    weight_WD = weight_DW.to(dtype).flip(1).T.contiguous()
    bias = None if bias_D is None else bias_D.to(dtype)
    starts = None if starts_BT is None else starts_BT.contiguous()
    return _Conv.apply(x_BTD.contiguous(), weight_WD, bias, tail_BWD.to(x_BTD.dtype).contiguous(), starts)


class _Conv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, weight, bias, tail, starts):
        y, after = torch.empty_like(x), torch.empty_like(tail)
        compiled.call(SOURCE, "forward", x.dtype, x, weight, bias, tail, starts, y, after, *x.shape, len(weight))
        ctx.save_for_backward(x, weight, tail, starts)
        return y, after

    @staticmethod
    def backward(ctx: Any, dy, dafter):
        x, weight, tail, starts = ctx.saved_tensors
        dx, dtail = torch.empty_like(x), torch.empty_like(tail)
        dweight, dbias = weight.new_empty(len(x), *weight.shape), weight.new_empty(len(x), x.shape[2])
        given = (x, weight, tail, starts, dy.contiguous(), dafter.contiguous())
        compiled.call(SOURCE, "backward", x.dtype, *given, dx, dweight, dbias, dtail, *x.shape, len(weight))
        return dx, dweight.sum(0), dbias.sum(0) if ctx.needs_input_grad[2] else None, dtail, None
