"""Softmax attention in blocks is the definition; the definition is `scaled_dot_product_attention` with the band written out.

With a soft cap it runs in tiles: values and every gradient are the definition's, and what it makes and keeps is small.
"""

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

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


def values_and_gradients(op, inputs, valid, at, scale=0.3, **settings) -> list[Tensor]:
    """Inputs after queries, keys and values are the prefix."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    y = op(*leaves[:3], valid, at, scale=scale, prefix=tuple(leaves[3:]) or None, **settings)
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


@pytest.mark.parametrize("window", [None, 16, 150])
@pytest.mark.parametrize(("past", "prefix"), [(0, 0), (40, 0), (100, 3)])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_capped_tiles_are_the_definition(monkeypatch, window, past, prefix, documents, dtype, bound):
    """Over four blocks of queries; in bfloat16 also within twice the error of the definition in bfloat16."""
    monkeypatch.setattr(chunk, "BLOCK", 64)
    inputs = [*streams(200, past, dtype), *(torch.randn(prefix, G, n).to(dtype) for n in (K, V) if prefix)]
    valid = torch.rand(B, past, generator=torch.Generator().manual_seed(0)) < 0.6
    settings = {"valid": valid, "at": starts(200) if documents else None, "window": window, "soft_cap": 0.7}
    exact = values_and_gradients(naive.attention, [x.double() for x in inputs], **settings)
    tiles = values_and_gradients(chunk.attention, inputs, **settings)
    for got, want in zip(tiles, exact, strict=True):
        assert got.dtype == dtype
        assert error(got, want) <= bound
    if dtype == torch.bfloat16:
        for got, plain, want in zip(tiles, values_and_gradients(naive.attention, inputs, **settings), exact, strict=True):
            assert error(got, want) <= 2 * error(plain, want)


def test_capped_tiles_of_the_size_that_runs_are_the_definition():
    tokens = 2 * chunk.BLOCK + 50
    inputs, valid = streams(tokens, 0, torch.float64), torch.zeros(B, 0, dtype=torch.bool)
    results = [values_and_gradients(op, inputs, valid, starts(tokens), soft_cap=0.7) for op in (chunk.attention, naive.attention)]
    for got, want in zip(*results, strict=True):
        assert error(got, want) <= 1e-12


@pytest.mark.parametrize("window", [None, 150])
def test_tiles_keep_documents_apart_exactly(monkeypatch, window):
    """Other tokens before a start, in the cache or the batch, leave what follows as it is, bit for bit, and get no gradient."""
    monkeypatch.setattr(chunk, "BLOCK", 64)
    tokens, past, start = 300, 40, 130
    at = torch.zeros(B, tokens, dtype=torch.bool)
    at[:, start] = True
    q, k, v = streams(tokens, past, torch.float32)
    results = []
    for factor in (1.0, -3.0):
        before = [torch.cat([factor * x[:, :n], x[:, n:]], 1) for x, n in ((q, start), (k, past + start), (v, past + start))]
        leaves = [x.requires_grad_() for x in before]
        y = chunk.attention(*leaves, torch.ones(B, past, dtype=torch.bool), at, window=window, scale=0.3, soft_cap=0.7)
        dq, dk, dv = torch.autograd.grad(y[:, start:].square().sum(), leaves)
        assert all(x[:, :n].count_nonzero() == 0 for x, n in ((dq, start), (dk, past + start), (dv, past + start)))
        results.append((y[:, start:], dq[:, start:], dk[:, past + start :], dv[:, past + start :]))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_scores_near_a_large_cap_do_not_overflow():
    """exp(200) is no float32, and the scores span almost all of (-200, 200)."""
    inputs, valid = streams(300, 0, torch.float32), torch.zeros(B, 0, dtype=torch.bool)
    settings = {"scale": 80.0, "soft_cap": 200.0}
    exact = values_and_gradients(naive.attention, [x.double() for x in inputs], valid, None, **settings)
    for got, want in zip(values_and_gradients(chunk.attention, inputs, valid, None, **settings), exact, strict=True):
        assert error(got, want) <= 1e-5


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("soft_cap", [None, 0.7])
def test_definition_is_masked_attention(window, soft_cap):
    tokens = 50
    q, k, v = streams(tokens, 0, torch.float64)
    distance = torch.arange(tokens)[:, None] - torch.arange(tokens)
    band = (distance >= 0) & (distance < (window or tokens))
    heads = [x.repeat_interleave(H // x.shape[2], 2).transpose(1, 2) for x in (q, k, v)]
    want = F.scaled_dot_product_attention(*heads, attn_mask=band, scale=0.3)
    if soft_cap is not None:
        score = soft_cap * torch.tanh(0.3 * heads[0] @ heads[1].mT / soft_cap)
        want = (score + band.double().log()).softmax(-1) @ heads[2]
    got = naive.attention(q, k, v, torch.zeros(B, 0, dtype=torch.bool), None, window=window, scale=0.3, soft_cap=soft_cap)
    assert error(got, want.transpose(1, 2)) <= 1e-12


@pytest.mark.parametrize("window", [None, 16])
@pytest.mark.parametrize(("past", "documents"), [(0, False), (7, True)])
def test_blocks_with_a_prefix_are_the_definition(window, past, documents):
    """Keys and values of no token, seen by all: also in their gradients."""
    inputs = [*streams(300, past, torch.float64), torch.randn(3, G, K).double(), torch.randn(3, G, V).double()]
    valid, at = torch.ones(B, past, dtype=torch.bool), starts(300) if documents else None
    results = [values_and_gradients(op, inputs, valid, at, window=window) for op in (chunk.attention, naive.attention)]
    for got, want in zip(*results, strict=True):
        assert error(got, want) <= 1e-12


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor made, in backward too."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("window", [None, 64])
@pytest.mark.parametrize("soft_cap", [None, 0.7])
def test_nothing_of_size_tokens_squared_is_made(window, soft_cap):
    """With documents, forward and backward: at most a block of queries against all keys; with a cap a tile, and its inputs kept."""
    tokens, kept = 2048, []
    at = torch.zeros(1, tokens, dtype=torch.bool)
    at[0, 100] = True
    q, k, v = (torch.randn(1, tokens, 1, 2, requires_grad=True) for _ in range(3))
    with Largest() as largest, saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        y = chunk.attention(q, k, v, torch.zeros(1, 0, dtype=torch.bool), at, window=window, scale=1.0, soft_cap=soft_cap)
        y.sum().backward()
    assert largest.elements <= tokens * chunk.BLOCK
    if soft_cap is not None:
        assert largest.elements <= chunk.BLOCK**2
        # queries, keys, values and outputs of two channels, log-sum-exps of one
        assert sum(kept) == tokens * (4 * 2 + 1)
