"""What a stretch of tokens does to the state of a diagonal recurrence: h_out = a h_in + h, a = prod_t a_t, 0 past a start.

h, the state behind the stretch from a state of zero, is the op's own; a selective scan's a is exp(A sum_t dt_t).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from llm.state import accumulator


class Summary(NamedTuple):
    """transition, update: of the state's shape; of a scan, transition is sum_t dt_t `[B, D]`, inf where a document starts."""

    transition: Tensor
    update: Tensor


def scan(dt_BTD: Tensor, starts_BT: Tensor | None, final: Callable[[], Tensor]) -> Summary:
    """final: gives the state behind the stretch from zero."""
    total = dt_BTD.to(accumulator(dt_BTD.dtype)).sum(1)
    if starts_BT is not None:
        total = total.masked_fill(starts_BT.any(1)[:, None], torch.inf)
    return Summary(total, final())


def compose_scan(state_BDN: Tensor, summary: Summary, A_DN: Tensor) -> Tensor:
    passes = summary.transition.isfinite()
    decay = (torch.where(passes, summary.transition, 0)[..., None] * A_DN).exp()
    return torch.where(passes[..., None], decay * state_BDN, 0) + summary.update


def elementwise(decay_BTD: Tensor, starts_BT: Tensor | None, final: Callable[[], Tensor]) -> Summary:
    total = decay_BTD.prod(1)
    if starts_BT is not None:
        total = torch.where(starts_BT.any(1)[:, None], 0, total)
    return Summary(total, final())


def compose_elementwise(state_BD: Tensor, summary: Summary) -> Tensor:
    return summary.transition * state_BD + summary.update
