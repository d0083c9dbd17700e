"""The selective scan in chunks and as a compiled loop is the definition, in values and every gradient."""

import pytest
import torch
from torch import Tensor

from llm.ops.scan import chunk, loop, naive, summary

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
    loss = sum((x * torch.randn(x.shape, generator=generator, dtype=torch.float64)).sum() for x in (y, final)).real
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


@pytest.mark.parametrize("first_start", [None, 0, 1, 40])
@pytest.mark.parametrize("which", [(), (2, 3, 4)], ids=["real", "complex"])
@pytest.mark.parametrize("op", [summary.scan_adjoint, loop.scan_adjoint], ids=["chunk", "loop"])
def test_the_adjoint_is_the_gradient_of_the_incoming_state(op, which, first_start):
    inputs = streams(100, 3, torch.float64)
    for i in (*which, 5) if which else ():
        inputs[i] = torch.complex(inputs[i], torch.randn_like(inputs[i]))
    u, dt, A, *shared, state = inputs
    at = None if first_start is None else torch.arange(100).expand(B, 100) % 50 == first_start
    y, _ = naive.scan(u, dt, A, *shared, state.requires_grad_(), at)
    dy = torch.randn_like(y)
    want = torch.zeros_like(state) if first_start == 0 else torch.autograd.grad(y, state, dy)[0]
    torch.testing.assert_close(op(dy, dt, A, shared[1], state.detach(), at), want, rtol=1e-12, atol=1e-14)


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


@pytest.mark.parametrize("tokens", [1, 33, 100])
@pytest.mark.parametrize("which", [(2,), (3, 4), (2, 3, 4)], ids=["A", "B and C", "all"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@FORMS
def test_complex_states_are_the_definition(op, tokens, which, dtype, bound):
    inputs = streams(tokens, 3, dtype)
    for i in (*which, 5):
        inputs[i] = torch.complex(inputs[i], torch.randn_like(inputs[i]))
    leaves = [x.to(torch.complex128 if x.is_complex() else torch.float64) for x in inputs]
    exact = values_and_gradients(naive.scan, leaves, starts(tokens))
    for got, want in zip(values_and_gradients(op, inputs, starts(tokens)), exact, strict=True):
        assert got.is_complex() == want.is_complex()
        assert distance(got, want) <= bound


def test_a_complex_state_is_two_real_ones():
    """exp((-r + iw) dt) turns by w dt: cosine and sine of the angle, fading."""
    T, r, w = 50, 0.3, 1.7
    dt, u = torch.rand(1, T, 1, dtype=torch.float64), torch.randn(1, T, 1, dtype=torch.float64)
    one = torch.ones(1, T, 1, 1, dtype=torch.complex128)
    A, state = torch.tensor([[complex(-r, w)]], dtype=torch.complex128), torch.zeros(1, 1, 1, dtype=torch.complex128)
    y, _ = chunk.scan(u, dt, A, one, (0.6 - 0.8j) * one, state)
    cosine = sine = 0.0
    for t in range(T):
        fade, angle = torch.exp(-r * dt[0, t, 0]), w * dt[0, t, 0]
        cosine, sine = fade * (angle.cos() * cosine - angle.sin() * sine), fade * (angle.sin() * cosine + angle.cos() * sine)
        cosine = cosine + dt[0, t, 0] * u[0, t, 0]
        torch.testing.assert_close(y[0, t, 0], 0.6 * cosine + 0.8 * sine)


def distance(a: Tensor, b: Tensor) -> float:
    return ((a - b).detach().norm() / b.detach().norm()).item()


def gated(tokens: int, dtype: torch.dtype) -> list[Tensor]:
    """x, decay, state; decays of 0 and 1 among them."""
    torch.manual_seed(tokens)
    x, decay, state = torch.randn(B, tokens, D), torch.rand(B, tokens, D), torch.randn(B, D)
    decay[:, ::5, 0], decay[:, ::7, 1] = 0, 1
    if dtype.is_complex:
        decay, state = decay * torch.exp(1j * torch.randn(decay.shape)), torch.complex(state, torch.randn(B, D))
    return [x.to(dtype), decay.to(torch.float32 if dtype == torch.bfloat16 else dtype), state.to(decay.dtype).to(dtype)]


@pytest.mark.parametrize("tokens", [1, 2, 31, 100])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.complex128, 1e-12)])
def test_elementwise_is_the_definition(tokens, documents, dtype, bound):
    inputs, at = gated(tokens, dtype), starts(tokens) if documents else None
    if dtype == torch.complex128:
        # real inputs to a complex state
        inputs[0] = inputs[0].real
    exact = [x.to(torch.complex128 if x.is_complex() else torch.float64) for x in inputs]
    pairs = zip(
        values_and_gradients(chunk.elementwise, inputs, at), values_and_gradients(naive.elementwise, exact, at), strict=True
    )
    assert all(distance(got, want) <= bound for got, want in pairs)


def test_elementwise_keeps_bfloat16_streams_and_a_float32_state():
    x, decay, state = gated(40, torch.bfloat16)
    h, final = chunk.elementwise(x, decay, state)
    assert (h.dtype, final.dtype) == (torch.bfloat16, torch.float32)
    exact, last = naive.elementwise(x.double(), decay.double(), state.double())
    assert distance(h.double(), exact) <= 1e-2
    assert distance(final.double(), last) <= 1e-5


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_elementwise_gradcheck(dtype):
    inputs = [x.requires_grad_() for x in gated(20, dtype)]
    assert torch.autograd.gradcheck(lambda *x: chunk.elementwise(*x, starts(20)), inputs, fast_mode=True)
