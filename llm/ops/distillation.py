"""How far a student's next tokens are from a teacher's and from the text's, in slices: no logits of the whole batch at once."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from llm.ops.cross_entropy import IGNORED, SLICE
from llm.state import accumulator


class Head(NamedTuple):
    """Logits are hidden weight^T, or cap tanh(logits / cap)."""

    hidden_ND: Tensor
    weight_ZD: Tensor
    cap: float | None = None

    def logits(self, part: slice) -> Tensor:
        """Of some rows, in the accumulator's dtype."""
        hidden = self.hidden_ND[part]
        logits = F.linear(hidden, self.weight_ZD.to(hidden.dtype)).to(accumulator(hidden.dtype))
        return logits if self.cap is None else self.cap * (logits / self.cap).tanh()


def distillation(student: Head, teacher: Head, labels_N: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Two sums over the labels that are not `IGNORED`, in nats: cross-entropy of the labels, and t^2 KL(teacher || student) of
    distributions at temperature t, whose gradient is then as large at any t (Hinton et al., arXiv:1503.02531 sec. 2).

    Gradients go to the student alone. A slice's logits are computed again in the backward pass.
    """
    exact = accumulator(student.hidden_ND.dtype)
    # one tensor in the accumulator's dtype, so that slices' gradients add up in it
    student = student._replace(weight_ZD=student.weight_ZD.to(exact))
    nats, divergence = torch.zeros((2,), dtype=exact, device=labels_N.device)
    for first in range(0, len(labels_N), SLICE):
        part = slice(first, first + SLICE)
        a, b = checkpoint(_slice, student, teacher, labels_N, temperature, part, use_reentrant=False, preserve_rng_state=False)
        nats, divergence = nats + a, divergence + b
    return nats, divergence


def _slice(student: Head, teacher: Head, labels_N: Tensor, temperature: float, part: slice) -> tuple[Tensor, Tensor]:
    logits, labels = student.logits(part), labels_N[part]
    nats = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")
    with torch.no_grad():
        wanted = (teacher.logits(part) / temperature).log_softmax(-1)
    found = (logits / temperature).log_softmax(-1)
    divergence = F.kl_div(found, wanted, reduction="none", log_target=True).sum(-1)
    return nats, temperature**2 * (divergence * (labels != IGNORED)).sum()
