"""mLSTM in chunks is the definition in values and every gradient; the definition is the paper's sum without a stabiliser."""

import pytest
import torch
from torch import Tensor

from llm.ops.linear import loop, mlstm, naive

B, H, K, V = 2, 3, 6, 5
FORMS = pytest.mark.parametrize("op", [mlstm.mlstm, loop.mlstm], ids=["chunk", "loop"])


def starts(tokens: int) -> Tensor:
    at = torch.zeros(B, tokens, dtype=torch.bool)
    for row, positions in enumerate(([0, 1, 63, 64, 65, 150], [5, 127, 128, 191])):
        at[row, [t for t in positions if t < tokens]] = True
    return at


def streams(tokens: int, dtype: torch.dtype, strength: float = 3.0) -> list[Tensor]:
    torch.manual_seed(tokens)
    q, k = torch.randn(B, tokens, H, K, dtype=torch.float64), torch.randn(B, tokens, H, K, dtype=torch.float64)
    v = torch.randn(B, tokens, H, V, dtype=torch.float64)
    log_input = strength * torch.randn(B, tokens, H, dtype=torch.float64)
    log_forget = torch.nn.functional.logsigmoid(2 + strength * torch.randn(B, tokens, H, dtype=torch.float64))
    C, n = torch.randn(B, H, K, V, dtype=torch.float64), torch.randn(B, H, K, dtype=torch.float64)
    m = strength * torch.randn(B, H, dtype=torch.float64)
    streams = [x.to(dtype) for x in (q, k, v)]
    return streams + [x if dtype == torch.float64 else x.float() for x in (log_input, log_forget, C, n, m)]


def values_and_gradients(op, inputs: list[Tensor], at: Tensor | None) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    h, state = op(*leaves[:5], tuple(leaves[5:]), at, scale=0.4)
    generator = torch.Generator().manual_seed(3)
    loss = sum((x.double() * torch.randn(x.shape, generator=generator, dtype=torch.float64)).sum() for x in (h, *state))
    return [h, *state, *torch.autograd.grad(loss, leaves)]


def error(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return ((a - b).norm() / b.norm().clamp(min=1e-30)).item()


@pytest.mark.parametrize("tokens", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("documents", [False, True])
@FORMS
def test_chunks_are_the_definition(op, tokens, documents):
    inputs, at = streams(tokens, torch.float64), starts(tokens) if documents else None
    exact = values_and_gradients(naive.mlstm, inputs, at)
    for got, want in zip(values_and_gradients(op, inputs, at), exact, strict=True):
        assert error(got, want) <= 1e-10


@FORMS
def test_float32_is_as_exact_as_the_definition_in_float32(op):
    inputs, at = streams(200, torch.float32, strength=1.0), starts(200)
    exact = values_and_gradients(naive.mlstm, [x.double() for x in inputs], at)
    plain = values_and_gradients(naive.mlstm, inputs, at)
    for got, slow, want in zip(values_and_gradients(op, inputs, at), plain, exact, strict=True):
        assert error(got, want) <= max(2 * error(slow, want), 1e-5)


@pytest.mark.parametrize("strength", [1.0, 3.0])
def test_bfloat16_products_are_as_exact_as_those_of_the_pytorch_form(strength):
    inputs, at = streams(200, torch.bfloat16, strength), starts(200)
    exact = values_and_gradients(naive.mlstm, [x.double() for x in inputs], at)
    plain = values_and_gradients(mlstm.mlstm, inputs, at)
    for got, slow, want in zip(values_and_gradients(loop.mlstm, inputs, at), plain, exact, strict=True):
        assert error(got, want) <= 2 * error(slow, want)


def test_definition_is_the_unstabilised_sum():
    q, k, v, log_input, log_forget, C, n, m = streams(40, torch.float64, strength=1.0)
    h, _ = naive.mlstm(q, k, v, log_input, log_forget, (C, n, m), None, scale=0.4)
    true_C, true_n = C * m.exp()[..., None, None], n * m.exp()[..., None]
    for t in range(40):
        i, f = log_input[:, t].exp()[..., None], log_forget[:, t].exp()[..., None]
        true_C = f[..., None] * true_C + (i * k[:, t])[..., None] * v[:, t, :, None]
        true_n = f * true_n + i * k[:, t]
        read = 0.4 * torch.einsum("bhk,bhkv->bhv", q[:, t], true_C)
        norm = (0.4 * (q[:, t] * true_n).sum(-1)).abs().clamp(min=1)
        torch.testing.assert_close(h[:, t], read / norm[..., None])


@pytest.mark.parametrize("op", [naive.mlstm, mlstm.mlstm, loop.mlstm])
def test_stabiliser_is_a_gauge(op):
    *tokens, C, n, m = streams(70, torch.float64)
    a = torch.randn(B, H, dtype=torch.float64)
    want, _ = op(*tokens, (C, n, m), None)
    got, _ = op(*tokens, (C * (-a).exp()[..., None, None], n * (-a).exp()[..., None], m + a), None)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@FORMS
def test_extreme_gates_stay_finite(op):
    inputs = streams(200, torch.float32, strength=60.0)
    got = values_and_gradients(op, inputs, starts(200))
    assert all(torch.isfinite(x).all() for x in got[:4])


@FORMS
def test_gradcheck(op):
    inputs = [x.requires_grad_() for x in streams(67, torch.float64, strength=1.0)]

    def run(*x: Tensor) -> tuple[Tensor, ...]:
        h, state = op(*x[:5], x[5:], starts(67))
        return (h, *state)

    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
