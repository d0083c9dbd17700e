"""Fast weights moved by their own error, token by token: the definition (Titans, Behrouz et al., arXiv:2501.00663 eqs. 8-15).

    S_t = eta_t S_{t-1} - theta_t grad ||M(k_t) - v_t||^2     M_t = (1 - alpha_t) M_{t-1} + S_t     y_t = M_t(q_t)

A memory M is a stack of matrices per head: one is linear, M(x) = x W; between two or more stands SiLU (the paper leaves it open).
The gradient, factor 2 included, is taken at the weights that the token's chunk started from (sec. 3.2), so the chunk is part of
the model: chunks of C tokens count from the document's start, whatever a pass or a split holds. There the weights are the learned
initial ones and the momentum S is zero. With C = 1 and eta = 0 a linear memory is the gated delta rule (decay after the error).
States and sums are float32, or float64 when the streams are.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from llm.state import accumulator

Weights = tuple[Tensor, ...]


class Memory(NamedTuple):
    """What a memory carries, each part one `[B, H, in, out]` per matrix. Where in its chunk it is, the position tells.

    start: the weights that the last token's chunk started from. weights: those after the last token. momentum: S after it.
    """

    start: Weights
    weights: Weights
    momentum: Weights

    def to(self, dtype: torch.dtype) -> "Memory":
        return Memory(*(tuple(w.to(dtype) for w in part) for part in self))


def memory(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    log_keep_BTH: Tensor,
    log_momentum_BTH: Tensor,
    step_BTH: Tensor,
    initial: Weights,
    state: Memory,
    position_BT: Tensor | None = None,
    *,
    chunk: int,
) -> tuple[Tensor, Memory]:
    """(y `[B, T, H, V]` in v's dtype, the memory after the last token).

    Args:
        log_keep_BTH: log(1 - alpha) <= 0. log_momentum_BTH: log eta <= 0. step_BTH: theta >= 0. The logs are finite.
        initial: one `[H, in, out]` per matrix: a document's weights before its first token.
        position_BT: each token's position in its document; None: a document starts at the first token, and no other.
        chunk: tokens per chunk, C.
    """
    dtype = accumulator(v_BTHV.dtype)
    if position_BT is None:
        position_BT = torch.arange(v_BTHV.shape[1], device=v_BTHV.device).expand(v_BTHV.shape[:2])
    rates = (log_keep_BTH.to(dtype).exp(), log_momentum_BTH.to(dtype).exp(), step_BTH.to(dtype))
    streams = (q_BTHK.to(dtype), k_BTHK.to(dtype), v_BTHV.to(dtype), *(x[..., None, None] for x in rates))
    positions = position_BT[..., None, None, None]
    first, (start, weights, surprise) = tuple(w.to(dtype) for w in initial), state.to(dtype)
    outputs = []
    for q, k, v, kept, eta, theta, position in zip(*(x.unbind(1) for x in (*streams, positions)), strict=True):
        weights = tuple(torch.where(position == 0, w0, w) for w0, w in zip(first, weights, strict=True))
        surprise = tuple(torch.where(position == 0, 0, s) for s in surprise)
        start = tuple(torch.where(position % chunk == 0, w, s) for w, s in zip(weights, start, strict=True))
        surprise = tuple(eta * s - theta * g for s, g in zip(surprise, loss_gradient(start, k, v), strict=True))
        weights = tuple(kept * w + s for w, s in zip(weights, surprise, strict=True))
        outputs.append(apply(weights, q))
    return torch.stack(outputs, 1).to(v_BTHV.dtype), Memory(start, weights, surprise)


def apply(weights: Weights, x_BHK: Tensor) -> Tensor:
    """M(x): `[B, H, V]`."""
    for w in weights[:-1]:
        x_BHK = F.silu(torch.einsum("bhi,bhio->bho", x_BHK, w))
    return torch.einsum("bhi,bhio->bho", x_BHK, weights[-1])


def loss_gradient(weights: Weights, k_BHK: Tensor, v_BHV: Tensor) -> Weights:
    """The gradient of ||M(k) - v||^2 in each matrix."""
    inputs, slopes = [k_BHK], []
    for w in weights[:-1]:
        sums = torch.einsum("bhi,bhio->bho", inputs[-1], w)
        inputs.append(F.silu(sums))
        slopes.append(silu_slope(sums))
    error = 2 * (torch.einsum("bhi,bhio->bho", inputs[-1], weights[-1]) - v_BHV)
    gradients = [inputs[-1][..., :, None] * error[..., None, :]]
    for w, x, slope in zip(weights[:0:-1], inputs[-2::-1], slopes[::-1], strict=True):
        error = torch.einsum("bho,bhio->bhi", error, w) * slope
        gradients.append(x[..., :, None] * error[..., None, :])
    return tuple(gradients[::-1])


def silu_slope(x: Tensor) -> Tensor:
    """The derivative of SiLU."""
    gate = x.sigmoid()
    return gate * (1 + x * (1 - gate))
