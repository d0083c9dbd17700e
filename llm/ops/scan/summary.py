"""How a diagonal recurrence's state passes through a stretch of tokens, forwards and backwards.

    h_out = a h_in + h        dh_in = conj(a) dh_out + g        a = prod_t a_t, 0 past a start

h, the state behind the stretch from a state of zero, is the op's own. g is what the gradient of the outputs alone asks of the
incoming state, g = sum_t conj(prod_{s <= t} a_s) C_t dy_t. A selective scan's products are exp(A sum dt). Nothing here has
gradients of its own.
"""

import torch
from torch import Tensor

from llm.ops.scan.naive import exact

CHUNK = 32


def steps(dt_BTD: Tensor, starts_BT: Tensor | None) -> Tensor:
    """What a scan's a is made of: sum_t dt_t `[B, D]`, inf where a document starts."""
    (dt,) = exact(dt_BTD)
    return dt.sum(1) if starts_BT is None else dt.sum(1).masked_fill(starts_BT.any(1)[:, None], torch.inf)


def fading(steps: Tensor, A_DN: Tensor) -> Tensor:
    """exp(A steps) `[..., D, N]`; 0 where the steps are infinite, whatever A is."""
    passes = steps.isfinite()[..., None]
    return torch.where(passes, (torch.where(passes, steps[..., None], 0) * A_DN).exp(), 0)


def scan_adjoint(
    dy_BTD: Tensor, dt_BTD: Tensor, A_DN: Tensor, C_BTGN: Tensor, like_BDN: Tensor, starts_BT: Tensor | None = None
) -> Tensor:
    """g `[B, D, N]`, of the dtype of the state `like`."""
    dy, dt, A, C = exact(dy_BTD, dt_BTD, A_DN, C_BTGN)
    before = dt.cumsum(1)
    if starts_BT is not None:
        before = before.masked_fill(starts_BT.cummax(1).values[..., None], torch.inf)
    total = torch.zeros_like(like_BDN)
    for part in (slice(first, first + CHUNK) for first in range(0, dt.shape[1], CHUNK)):
        asked = (fading(before[:, part], A.conj()) * dy[:, part, :, None]).unflatten(2, (C.shape[2], -1))
        total += torch.einsum("btgdn,btgn->bgdn", asked.to(total.dtype), C[:, part].conj().to(total.dtype)).flatten(1, 2)
    return total


def product(decay_BTD: Tensor, starts_BT: Tensor | None) -> Tensor:
    """a of `elementwise` `[B, D]`."""
    return _stopped(decay_BTD, starts_BT).prod(1)


def elementwise_adjoint(dh_BTD: Tensor, decay_BTD: Tensor, starts_BT: Tensor | None) -> Tensor:
    """g `[B, D]`."""
    return (_stopped(decay_BTD, starts_BT).cumprod(1).conj() * dh_BTD).sum(1)


def _stopped(decay_BTD: Tensor, starts_BT: Tensor | None) -> Tensor:
    (decay,) = exact(decay_BTD)
    return decay if starts_BT is None else torch.where(starts_BT[..., None], 0, decay)
