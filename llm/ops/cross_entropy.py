"""Cross-entropy of a linear head, summed over tokens, in slices: the logits of the whole batch never exist at once."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from llm.ops.routes import kernel_of
from llm.state import accumulator

IGNORED = -100
SLICE = 1024


def cross_entropy(
    hidden_ND: Tensor, weight_ZD: Tensor, labels_N: Tensor, z_loss: float = 0.0, cap: float | None = None
) -> tuple[Tensor, Tensor]:
    """-sum_n log softmax(W h_n)[label_n] in nats, over the labels that are not `IGNORED`; and sum_n log^2 Z_n over the same.

    Scalars in the accumulator's dtype; Z_n is the softmax's denominator. The first one's gradient is that of itself plus `z_loss`
    times the second (PaLM, arXiv:2204.02311, section 5), which has none of its own: so a loss that is reported holds no z-loss.
    cap: c, where logits are c tanh(W h / c).

    Where gradients are wanted they are made in the forward pass, slice by slice, while the logits are there: the backward pass
    only scales them. Holds `SLICE` x Z logits and, for gradients, one N x D and one Z x D tensor.
    """
    if torch.is_grad_enabled() and (hidden_ND.requires_grad or weight_ZD.requires_grad):
        return _WithGradients.apply(hidden_ND, weight_ZD, labels_N, z_loss, cap)
    return _slices(hidden_ND, weight_ZD, labels_N, z_loss, cap, None, None)


def _slices(
    hidden: Tensor, weight: Tensor, labels: Tensor, z_loss: float, cap: float | None, dhidden: Tensor | None, dweight: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Both sums; fills `dhidden` and adds to `dweight` when given."""
    loss = torch.zeros((), dtype=accumulator(hidden.dtype), device=hidden.device)
    squares = torch.zeros_like(loss)
    for first in range(0, len(hidden), SLICE):
        part = slice(first, first + SLICE)
        h, label = hidden[part], labels[part]
        logits = h @ weight.T
        settings: dict[str, Any] = {"ignored": IGNORED, "z_loss": z_loss, "cap": cap, "gradient": dhidden is not None}
        run = kernel_of("cross_entropy", None, logits, label, **settings) or _of_logits
        nats, log_total, dlogits = run(logits, label, **settings, at=None)
        loss += nats.sum()
        squares += (log_total.square() * (label != IGNORED)).sum()
        if dlogits is not None and dhidden is not None and dweight is not None:
            dhidden[part] = dlogits @ weight
            dweight += dlogits.T @ h
    return loss, squares


def _of_logits(
    logits: Tensor, labels: Tensor, *, ignored: int, z_loss: float, cap: float | None, gradient: bool, at: None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Of each token: nats, 0 where the label is not scored; log Z; the gradient of nats and z-loss, in the logits' dtype.

    The logits, before a cap, are given up.
    """
    dtype = logits.dtype
    logits = logits.to(accumulator(dtype))
    if cap is not None:
        logits = logits.div_(cap).tanh_().mul_(cap)
    log_total = logits.logsumexp(-1, keepdim=True)
    scored, target = (labels != ignored)[:, None], labels.clamp(min=0)[:, None]
    nats = (log_total - logits.gather(1, target)) * scored
    if not gradient:
        return nats[:, 0], log_total[:, 0], None
    slope = None if cap is None else 1 - (logits / cap) ** 2
    dlogits = logits.sub_(log_total).exp_()
    if z_loss:
        dlogits *= 1 + 2 * z_loss * log_total
    dlogits.scatter_add_(1, target, torch.full_like(log_total, -1))
    dlogits *= scored
    if slope is not None:
        dlogits *= slope
    return nats[:, 0], log_total[:, 0], dlogits.to(dtype)


class _WithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden, weight, labels, z_loss, cap):
        dhidden = torch.empty_like(hidden)
        dweight = torch.zeros_like(weight, dtype=accumulator(weight.dtype))
        loss, squares = _slices(hidden, weight, labels, z_loss, cap, dhidden, dweight)
        ctx.save_for_backward(dhidden, dweight.to(weight.dtype))
        ctx.mark_non_differentiable(squares)
        return loss, squares

    @staticmethod
    def backward(ctx: Any, dloss, _):
        dhidden, dweight = ctx.saved_tensors
        return dhidden * dloss.to(dhidden.dtype), dweight * dloss.to(dweight.dtype), None, None, None


def cross_entropy_per_token(logits_BTZ: Tensor, labels_BT: Tensor) -> Tensor:
    """nats `[B, T]`, 0 where the label is `IGNORED`."""
    logits = logits_BTZ.to(accumulator(logits_BTZ.dtype))
    return F.cross_entropy(logits.flatten(0, 1), labels_BT.flatten(), ignore_index=IGNORED, reduction="none").view_as(labels_BT)
