"""Memory as a context, segment by segment, is its definition token by token, in values and every gradient."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from llm.ops.memory import context, naive
from llm.ops.memory.naive import Context, Maps, Memory

B, H, K, C = 2, 2, 4, 8
DEPTHS = pytest.mark.parametrize("sizes", [(K, K), (K, 6, K)], ids=["linear", "mlp"])


def positions(tokens: int, offsets: list[int], documents: bool) -> Tensor:
    at = torch.arange(tokens) + torch.tensor(offsets)[:, None]
    if documents:
        for row, starts in enumerate(([C - 1, C, 2 * C + 1, 3 * C + 4], [5, 5 + C, 6 + 3 * C])):
            for start in (s for s in starts if s < tokens):
                at[row, start:] = torch.arange(tokens - start)
    return at


def inputs_of(tokens: int, sizes: tuple[int, ...]) -> list[Tensor]:
    """q, k, v, query; four maps; prefix; caches; then initial weights, start, weights, momentum per matrix. In float64."""
    generator = torch.Generator().manual_seed(tokens)
    normal = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    streams = [normal(B, tokens, H, K), normal(B, tokens, H, K), normal(B, tokens, H, K)]
    streams.append(F.normalize(normal(B, tokens, H, K), dim=-1))
    maps = [normal(H, 2 * K, K) / 2, normal(H, 3 * K, K) / 2, normal(H, 3, K) / 2, normal(H, 3) + torch.tensor([3.0, 0, 0])]
    rest = [normal(3, H, K), normal(3, H, K), normal(B, C, 2, H, K), normal(B, C, 2, H, K)]
    shapes = list(pairwise(sizes))
    return [*streams, *maps, *rest] + [
        s[0] ** -0.5 * normal(*([] if part == 0 else [B]), H, *s) for part in range(4) for s in shapes
    ]


def run(op, inputs: list[Tensor], position: Tensor | None, theta: float | None) -> list[Tensor]:
    layers = (len(inputs) - 12) // 4
    initial, *parts = (tuple(inputs[12 + i * layers : 12 + (i + 1) * layers]) for i in range(4))
    state = Context(Memory(*parts), *inputs[10:12])
    settings = {"chunk": C, "step_max": 0.05, "scale": 0.7, "theta": theta, "prefix": tuple(inputs[8:10])}
    a, m, after = op(*inputs[:4], Maps(*inputs[4:8]), initial, state, position, **settings)
    return [a, m, *(w for part in after.memory for w in part), after.k, after.v]


def values_and_gradients(op, inputs: list[Tensor], position: Tensor | None, theta: float | None = None) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    values = run(op, leaves, position, theta)
    generator = torch.Generator().manual_seed(3)
    loss = sum((x.double() * torch.randn(x.shape, generator=generator, dtype=torch.float64)).sum() for x in values)
    return [*values, *torch.autograd.grad(loss, leaves, materialize_grads=True)]


def error(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return ((a - b).norm() / b.norm().clamp(min=1e-30)).item()


@DEPTHS
@pytest.mark.parametrize("tokens", [1, C - 1, C, 4 * C + 3])
@pytest.mark.parametrize(("offsets", "documents"), [([0, 5], False), ([C, 2 * C - 1], False), ([3, 0], True)])
@pytest.mark.parametrize("theta", [None, 100.0])
def test_segments_are_the_definition(sizes, tokens, offsets, documents, theta):
    inputs, position = inputs_of(tokens, sizes), positions(tokens, offsets, documents)
    pairs = zip(*(values_and_gradients(op, inputs, position, theta) for op in (context.context, naive.context)), strict=True)
    assert all(error(got, want) <= 1e-11 or want.norm() < 1e-12 for got, want in pairs)


@DEPTHS
def test_one_document_from_its_start_needs_no_positions(sizes):
    inputs = inputs_of(3 * C + 2, sizes)
    at = torch.arange(3 * C + 2).expand(B, -1)
    for op in (context.context, naive.context):
        pairs = zip(values_and_gradients(op, inputs, None), values_and_gradients(op, inputs, at), strict=True)
        assert all(error(got, want) <= 1e-12 or want.norm() < 1e-12 for got, want in pairs)


@DEPTHS
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_low_precision(sizes, dtype, bound):
    """bfloat16 attends in bfloat16, and from that the memory learns: no worse than twice the definition in the same dtype."""
    inputs, position = inputs_of(3 * C + 3, sizes), positions(3 * C + 3, [3, 0], documents=True)
    inputs = [x.to(dtype).double() for x in inputs]
    low = [x.to(dtype if i < 3 or 4 <= i < 7 or 8 <= i < 12 else torch.float32) for i, x in enumerate(inputs)]
    best = values_and_gradients(naive.context, inputs, position, 100.0)
    plain = values_and_gradients(naive.context, low, position, 100.0)
    for got, loop, want in zip(values_and_gradients(context.context, low, position, 100.0), plain, best, strict=True):
        assert error(got, want) <= max(bound, 2 * error(loop, want)) or want.norm() < 1e-12


def test_gradcheck():
    inputs = [x.requires_grad_() for x in inputs_of(2 * C + 3, (K, 6, K))]
    position = positions(2 * C + 3, [3, 0], documents=True)
    assert torch.autograd.gradcheck(lambda *x: tuple(run(context.context, list(x), position, None)), inputs, fast_mode=True)
