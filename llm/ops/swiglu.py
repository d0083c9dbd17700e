"""The gate of SwiGLU (Shazeer, arXiv:2002.05202) and of many mixers: silu(gate) * x."""

from torch import Tensor
from torch.nn import functional as F

from llm.ops.routes import kernel_of


def swiglu(gate: Tensor, x: Tensor) -> Tensor:
    """Of two streams of one shape. The kernel rounds once, this form also between silu and product."""
    if kernel := kernel_of("swiglu", None, gate, x):
        return kernel(gate, x, at=None)
    return F.silu(gate) * x
