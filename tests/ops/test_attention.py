"""Softmax attention in blocks is the definition; the definition is `scaled_dot_product_attention` with the band written out."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from llm.ops.attention import chunk, naive

B, H, G, K, V = 2, 4, 2, 6, 5


def streams(tokens: int, past: int, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(tokens + past)
    shapes = ((B, tokens, H, K), (B, past + tokens, G, K), (B, past + tokens, G, V))
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]


def starts(tokens: int) -> Tensor:
    at = torch.zeros(B, tokens, dtype=torch.bool)
    for row, positions in enumerate(([0, 1, 63, 64, 150, 257], [5, 127, 299])):
        at[row, [t for t in positions if t < tokens]] = True
    return at


def values_and_gradients(op, inputs, valid, at, **settings) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    y = op(*leaves, valid, at, scale=0.3, **settings)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return [y, *torch.autograd.grad((y.double() * weight).sum(), leaves)]


def error(a: Tensor, b: Tensor) -> float:
    """Frobenius norm of the difference, relative to b's where that is above 1: a window of one token has zero gradients."""
    a, b = a.detach().double(), b.detach().double()
    return ((a - b).norm() / b.norm().clamp(min=1)).item()


@pytest.mark.parametrize("window", [None, 1, 16, 300])
@pytest.mark.parametrize("past", [0, 7, 40])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_blocks_are_the_definition(window, past, documents, dtype, bound):
    tokens = 300
    inputs = streams(tokens, past, dtype)
    valid = torch.rand(B, past, generator=torch.Generator().manual_seed(0)) < 0.6
    at = starts(tokens) if documents else None
    exact = values_and_gradients(naive.attention, [x.double() for x in inputs], valid, at, window=window)
    for got, want in zip(values_and_gradients(chunk.attention, inputs, valid, at, window=window), exact, strict=True):
        assert error(got, want) <= bound


@pytest.mark.parametrize("window", [None, 9])
def test_definition_is_masked_attention(window):
    tokens = 50
    q, k, v = streams(tokens, 0, torch.float64)
    distance = torch.arange(tokens)[:, None] - torch.arange(tokens)
    band = (distance >= 0) & (distance < (window or tokens))
    heads = (x.repeat_interleave(H // x.shape[2], 2).transpose(1, 2) for x in (q, k, v))
    want = F.scaled_dot_product_attention(*heads, attn_mask=band, scale=0.3).transpose(1, 2)
    got = naive.attention(q, k, v, torch.zeros(B, 0, dtype=torch.bool), None, window=window, scale=0.3)
    assert error(got, want) <= 1e-12


@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize(("past", "documents"), [(0, False), (7, True)])
def test_blocks_with_a_prefix_are_the_definition(window, past, documents):
    """Keys and values of no token, seen by all: also in their gradients."""
    inputs = [*streams(300, past, torch.float64), torch.randn(3, G, K).double(), torch.randn(3, G, V).double()]
    valid, at = torch.ones(B, past, dtype=torch.bool), starts(300) if documents else None
    results = []
    for op in (chunk.attention, naive.attention):
        with_prefix = lambda q, k, v, pk, pv, *rest, op=op, **kw: op(q, k, v, *rest, prefix=(pk, pv), **kw)  # noqa: E731
        results.append(values_and_gradients(with_prefix, inputs, valid, at, window=window))
    for got, want in zip(*results, strict=True):
        assert error(got, want) <= 1e-12


def test_nothing_of_size_tokens_squared_is_made():
    """The largest tensor that a windowed pass with documents allocates stays below T x T."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                if isinstance(tensor, Tensor):
                    self.elements = max(self.elements, tensor.numel())
            return out

    tokens = 2048
    at = torch.zeros(1, tokens, dtype=torch.bool)
    at[0, 100] = True
    q, k, v = (torch.randn(1, tokens, 1, 2) for _ in range(3))
    for window in (None, 64):
        with Largest() as largest:
            chunk.attention(q, k, v, torch.zeros(1, 0, dtype=torch.bool), at, window=window, scale=1.0)
        assert largest.elements <= tokens * chunk.BLOCK
