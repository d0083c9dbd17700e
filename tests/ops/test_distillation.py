"""Cross-entropy and divergence from a teacher in slices: torch's own on all logits at once, values and gradients."""

import pytest
import torch
from torch.nn import functional as F

from llm.ops import distillation as module
from llm.ops.distillation import Head, distillation


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_it_is_torchs_on_all_logits(temperature, monkeypatch):
    monkeypatch.setattr(module, "SLICE", 7)
    generator = torch.Generator().manual_seed(0)
    sizes = ((40, 6), (11, 6), (40, 9), (11, 9))
    h, W, h_t, W_t = (torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes)
    labels = torch.randint(11, (40,), generator=generator)
    labels[::3] = -100
    h.requires_grad_()
    W.requires_grad_()
    found = distillation(Head(h, W, 2.0), Head(h_t, W_t), labels, temperature)

    scored = labels != -100
    logits, wanted = 2 * (h @ W.T / 2).tanh(), (h_t @ W_t.T)[scored] / temperature
    nats = F.cross_entropy(logits[scored], labels[scored], reduction="sum")
    # KL(p || q) = cross-entropy of q under p, less the entropy of p
    p = wanted.softmax(-1)
    entropy = -(p * p.log()).sum()
    divergence = F.cross_entropy(logits[scored] / temperature, p, reduction="sum") - entropy
    torch.testing.assert_close(found, (nats, temperature**2 * divergence))
    weights = (0.3, 0.7 / temperature**2)
    got = torch.autograd.grad(weights[0] * found[0] + weights[1] * found[1], [h, W])
    want = torch.autograd.grad(0.3 * nats + 0.7 * divergence, [h, W])
    torch.testing.assert_close(got, want)


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    h, W = torch.randn(20, 6, requires_grad=True), torch.randn(11, 6)
    _, divergence = distillation(Head(h, W), Head(h.detach(), W), torch.zeros(20, dtype=torch.long), 2.0)
    assert divergence.abs() < 1e-5
    assert torch.autograd.grad(divergence, h)[0].abs().max() < 1e-5
