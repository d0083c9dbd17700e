"""The gated linear recurrence: chunks, in PyTorch and compiled, are the definition, in values and every gradient."""

import pytest
import torch
from torch import Tensor

from llm.ops.linear import chunk, loop, naive

B, H, K, V = 2, 3, 6, 5
FORMS = pytest.mark.parametrize("op", [chunk.linear, loop.linear], ids=["chunk", "loop"])
DECAYS = {"fixed": (H,), "per head": (B, -1, H), "per channel": (B, -1, H, K)}


def starts(tokens: int) -> Tensor:
    at = torch.zeros(B, tokens, dtype=torch.bool)
    for row, positions in enumerate(([0, 1, 63, 64, 65, 150], [5, 127, 128, 191])):
        at[row, [t for t in positions if t < tokens]] = True
    return at


def streams(tokens: int, decay: str, dtype: torch.dtype, strength: float = 1.0) -> list[Tensor]:
    torch.manual_seed(tokens)
    shape = [tokens if n == -1 else n for n in DECAYS[decay]]
    log_decay = -strength * torch.rand(shape, dtype=torch.float64)
    sizes = ((B, tokens, H, K), (B, tokens, H, K), (B, tokens, H, V), (B, H, K, V))
    q, k, v, state = (torch.randn(size, dtype=torch.float64) for size in sizes)
    return [x.to(dtype) for x in (q, k, v)] + [
        log_decay.float() if dtype == torch.bfloat16 else log_decay.to(dtype),
        state.to(dtype),
    ]


def values_and_gradients(op, inputs: list[Tensor], at: Tensor | None) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    y, final = op(*leaves, at, scale=0.4)
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in (y, final)]
    loss = sum((x.double() * w).sum() for x, w in zip((y, final), weights, strict=True))
    return [y, final, *torch.autograd.grad(loss, leaves)]


def error(a: Tensor, b: Tensor) -> float:
    """Relative Frobenius norm of the difference."""
    return ((a.detach().double() - b.detach().double()).norm() / b.detach().double().norm().clamp(min=1e-30)).item()


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 200])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@FORMS
def test_chunked_form_is_the_definition(op, decay, tokens, documents, dtype, bound):
    inputs = streams(tokens, decay, dtype)
    at = starts(tokens) if documents else None
    exact = values_and_gradients(naive.linear, [x.double() for x in inputs], at)
    for got, want in zip(values_and_gradients(op, inputs, at), exact, strict=True):
        assert error(got, want) <= bound


@pytest.mark.parametrize("decay", DECAYS)
@FORMS
def test_bfloat16_streams_keep_a_float32_state(op, decay):
    inputs = streams(130, decay, torch.bfloat16)
    at = starts(130)
    exact = values_and_gradients(naive.linear, [x.double() for x in inputs], at)
    got = values_and_gradients(op, inputs, at)
    assert got[0].dtype == torch.bfloat16
    assert got[1].dtype == torch.float32
    for a, b in zip(got, exact, strict=True):
        assert error(a, b) <= 1e-2


@pytest.mark.parametrize("decay", ["per head", "per channel"])
@FORMS
def test_strong_decays_neither_overflow_nor_underflow_to_nan(op, decay):
    """The bound is what float32 can hold of a sum of 64 such decays, relative to the one term that matters."""
    strength = 200.0
    inputs = streams(200, decay, torch.float32, strength)
    exact = values_and_gradients(naive.linear, [x.double() for x in inputs], starts(200))
    got = values_and_gradients(op, inputs, starts(200))
    for a, b in zip(got[:2], exact[:2], strict=True):
        assert torch.isfinite(a).all()
        assert error(a, b) <= torch.finfo(torch.float32).eps * chunk.CHUNK * strength
    assert all(torch.isfinite(gradient).all() for gradient in got[2:])


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
@FORMS
def test_heads_share_their_groups_queries_and_keys(op, groups, decay, documents):
    q, k, v, log_decay, state = streams(130, decay, torch.float64)
    if groups == 2:
        v, state = (torch.cat([x, 0.5 * x.flip(-1)], i) for x, i in ((v, 2), (state, 1)))
        log_decay = torch.cat([log_decay, 2 * log_decay], min(2, log_decay.ndim - 1))
    inputs = [q[:, :, :groups], k[:, :, :groups], v, log_decay, state]
    at = starts(130) if documents else None
    exact = values_and_gradients(naive.linear, inputs, at)
    for got, want in zip(values_and_gradients(op, inputs, at), exact, strict=True):
        assert error(got, want) <= 1e-12


@pytest.mark.parametrize("decay", DECAYS)
@FORMS
def test_gradcheck(op, decay):
    inputs = [x.requires_grad_() for x in streams(67, decay, torch.float64)]
    at = starts(67)
    assert torch.autograd.gradcheck(lambda *x: op(*x, at), inputs, fast_mode=True)


@FORMS
def test_retention_is_its_parallel_form(op):
    """RetNet eq. 5: (Q K^T * D) V with D_nm = gamma^(n-m), an oracle without a recurrence."""
    q, k, v, _, _ = streams(100, "fixed", torch.float64)
    gamma = torch.tensor([0.9, 0.97, 0.99], dtype=torch.float64)
    n = torch.arange(100)
    D_HTT = (gamma[:, None, None] ** (n[:, None] - n).clamp(min=0)) * (n[:, None] >= n)
    parallel = torch.einsum("bthk,bshk,hts,bshv->bthv", q, k, D_HTT, v)
    y, _ = op(q, k, v, gamma.log(), torch.zeros(B, H, K, V, dtype=torch.float64))
    assert error(y, parallel) <= 1e-12


def test_cost_is_linear_in_tokens():
    """Matrix-product FLOPs of twice the chunks are twice as many."""
    from torch.utils.flop_counter import FlopCounterMode

    counted = []
    for tokens in (128, 256):
        inputs = [x.requires_grad_() for x in streams(tokens, "per head", torch.float32)]
        with FlopCounterMode(display=False) as counter:
            y, _ = chunk.linear(*inputs, None)
            y.sum().backward()
        counted.append(counter.get_total_flops())
    assert counted[1] == 2 * counted[0]


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 17, 33), (1, 64, 64), (1, 40, 130)])
def test_widths_that_fill_vectors_and_that_do_not(sizes):
    heads, keys, values = sizes
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    inputs = [normal(B, 100, heads, keys), normal(B, 100, heads, keys), normal(B, 100, heads, values)]
    inputs += [-normal(B, 100, heads).abs(), normal(B, heads, keys, values)]
    exact = values_and_gradients(naive.linear, inputs, starts(100))
    for got, want in zip(values_and_gradients(loop.linear, inputs, starts(100)), exact, strict=True):
        assert error(got, want) <= 1e-12
    low = [x.float() for x in inputs]
    for got, want in zip(values_and_gradients(loop.linear, low, starts(100)), exact, strict=True):
        assert error(got, want) <= 1e-5


@pytest.mark.parametrize("sizes", [(2, 1, 17, 33), (6, 2, 64, 130), (20, 20, 64, 64)])
def test_bfloat16_products_are_as_exact_as_those_of_the_pytorch_form(sizes):
    """Widths that fill vectors and not; heads in groups, in parts of a group, and more than one run of them (H, G, K, V)."""
    heads, groups, keys, values = sizes
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(shape, generator=generator)  # noqa: E731
    inputs = [normal(B, 100, groups, keys), normal(B, 100, groups, keys), normal(B, 100, heads, values)]
    inputs = [x.bfloat16() for x in inputs] + [-normal(B, 100, heads).abs(), normal(B, heads, keys, values)]
    exact = values_and_gradients(naive.linear, [x.double() for x in inputs], starts(100))
    plain = values_and_gradients(chunk.linear, inputs, starts(100))
    for got, slow, want in zip(values_and_gradients(loop.linear, inputs, starts(100)), plain, exact, strict=True):
        assert error(got, want) <= min(2 * error(slow, want), 1e-2)


def test_an_earlier_document_touches_nothing_in_bfloat16():
    inputs, at = streams(130, "per head", torch.bfloat16), starts(130)
    at[:, 100] = True
    other = [torch.cat([x[:, :100].neg() * 3, x[:, 100:]], 1) for x in inputs[:3]] + inputs[3:]
    other[3] = torch.cat([other[3][:, :100] * 2, other[3][:, 100:]], 1)
    for a, b in zip(loop.linear(*inputs, at), loop.linear(*other, at), strict=True):
        assert torch.equal(a[:, 100:] if a.dtype == torch.bfloat16 else a, b[:, 100:] if b.dtype == torch.bfloat16 else b)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", [1, 3])
def test_the_loop_does_not_depend_on_threads(dtype, groups):
    q, k, v, log_decay, state = streams(130, "per head", dtype)
    inputs, before, found = [q[:, :, :groups], k[:, :, :groups], v, log_decay, state], torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(values_and_gradients(loop.linear, inputs, starts(130)))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
