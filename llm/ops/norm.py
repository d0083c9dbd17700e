"""Normalisation with float32 statistics, whatever the dtype of the stream."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm.ops.routes import kernel_of
from llm.state import accumulator


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension, in x's dtype (RMSNorm, arXiv:1910.07467 eq. 4)."""
    if kernel := kernel_of("norm", None, x, weight, eps=eps):
        return kernel(x, weight, eps=eps, at=None)
    dtype = accumulator(x.dtype)
    weight = None if weight is None else weight.to(dtype)
    return F.rms_norm(x.to(dtype), x.shape[-1:], weight, eps).to(x.dtype)


def head_norm(x_BTHV: Tensor, weight_HV: Tensor, bias_HV: Tensor | None, eps: float) -> Tensor:
    """Group norm whose groups are a token's heads: zero mean and unit variance over V, then weight and bias per channel."""
    if kernel := kernel_of("head norm", None, x_BTHV, weight_HV, bias_HV, eps=eps):
        return kernel(x_BTHV, weight_HV, bias_HV, eps=eps, at=None)
    dtype = accumulator(x_BTHV.dtype)
    normed = F.layer_norm(x_BTHV.to(dtype), x_BTHV.shape[-1:], eps=eps)
    scaled = normed * weight_HV.to(dtype)
    return (scaled if bias_HV is None else scaled + bias_HV.to(dtype)).to(x_BTHV.dtype)


class RMSNorm(nn.Module):
    """`rms_norm` with a weight."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.eps = eps
        self.norm_weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.norm_weight, self.eps)
