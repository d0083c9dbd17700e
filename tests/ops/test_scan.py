"""The selective scan in chunks and as a compiled loop is the definition, in values and every gradient."""

import pytest
import torch
from torch import Tensor

from llm.ops.scan import chunk, loop, naive

B, D, N = 2, 6, 4
FORMS = pytest.mark.parametrize("op", [chunk.scan, loop.scan], ids=["chunk", "loop"])


def starts(tokens: int) -> Tensor:
    at = torch.zeros(B, tokens, dtype=torch.bool)
    for row, positions in enumerate(([0, 1, 31, 32, 33, 75], [5, 63, 64, 95])):
        at[row, [t for t in positions if t < tokens]] = True
    return at


def streams(tokens: int, groups: int, dtype: torch.dtype, D: int = D) -> list[Tensor]:
    torch.manual_seed(tokens)
    u, dt = torch.randn(B, tokens, D), torch.rand(B, tokens, D)
    shared = torch.randn(2, B, tokens, groups, N)
    A, state = -torch.rand(D, N) * 3, torch.randn(B, D, N)
    exact = torch.float32 if dtype == torch.bfloat16 else dtype
    return [u.to(dtype), dt.to(exact), A.to(exact), *shared.to(dtype), state.to(exact)]


def values_and_gradients(op, inputs: list[Tensor], at: Tensor | None) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    y, final = op(*leaves, at)
    generator = torch.Generator().manual_seed(3)
    loss = sum((x.double() * torch.randn(x.shape, generator=generator, dtype=torch.float64)).sum() for x in (y, final))
    return [y, final, *torch.autograd.grad(loss, leaves)]


def error(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return ((a - b).norm() / b.norm().clamp(min=1e-30)).item()


@pytest.mark.parametrize("tokens", [1, 31, 32, 33, 100])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@FORMS
def test_the_fast_forms_are_the_definition(op, tokens, groups, documents, dtype, bound):
    inputs, at = streams(tokens, groups, dtype), starts(tokens) if documents else None
    exact = values_and_gradients(naive.scan, [x.double() for x in inputs], at)
    for got, want in zip(values_and_gradients(op, inputs, at), exact, strict=True):
        assert error(got, want) <= bound


@FORMS
def test_gradcheck(op):
    inputs = [x.requires_grad_() for x in streams(40, 2, torch.float64)]
    assert torch.autograd.gradcheck(lambda *x: op(*x, starts(40)), inputs, fast_mode=True)


@FORMS
def test_steep_decays_stay_finite(op):
    u, dt, A, *rest = streams(100, 1, torch.float32)
    got = values_and_gradients(op, [u, 50 * dt, 50 * A, *rest], starts(100))
    assert all(torch.isfinite(x).all() for x in got)


@pytest.mark.parametrize("channels", [1, 16, 150, 600])
def test_blocks_of_channels_and_their_parts(channels):
    inputs = streams(40, 1, torch.float64, channels)
    pairs = zip(
        values_and_gradients(loop.scan, inputs, starts(40)), values_and_gradients(naive.scan, inputs, starts(40)), strict=True
    )
    assert all(error(got, want) <= 1e-12 for got, want in pairs)


def test_the_loop_does_not_depend_on_threads():
    inputs, before = streams(100, 1, torch.float32, 300), torch.get_num_threads()
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(values_and_gradients(loop.scan, inputs, starts(100)))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
