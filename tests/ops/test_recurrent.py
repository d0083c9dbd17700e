"""Both fast forms are the definition in every gradient; the cells are PyTorch's, and the paper's written out."""

import pytest
import torch
from torch import Tensor

from llm.ops.recurrent import chunk, loop, naive
from llm.ops.recurrent.cells import CELLS

B, H, V = 2, 2, 5
FORMS = pytest.mark.parametrize("op", [chunk.recurrent, loop.recurrent], ids=["chunk", "loop"])


def starts(tokens: int) -> Tensor:
    at = torch.zeros(B, tokens, dtype=torch.bool)
    for row, positions in enumerate(([0, 1, 9], [4, 20])):
        at[row, [t for t in positions if t < tokens]] = True
    return at


def streams(cell: str, tokens: int, dtype: torch.dtype, B: int = B, V: int = V) -> list[Tensor]:
    torch.manual_seed(tokens)
    M = CELLS[cell].gates
    x, R, bias = torch.randn(B, tokens, H, M, V), torch.randn(H, M, V, V) * 0.9 / V**0.5, torch.randn(H, M, V)
    state = [torch.randn(B, H, V) for _ in CELLS[cell].states]
    if cell == "slstm":
        state[2] = state[2].abs() + 0.5
    exact = torch.float32 if dtype == torch.bfloat16 else dtype
    return [x.to(dtype), *(s.to(exact) for s in (R, bias, *state))]


def values_and_gradients(op, cell: str, inputs: list[Tensor], at: Tensor | None) -> list[Tensor]:
    x, R, bias, *state = leaves = [s.detach().clone().requires_grad_() for s in inputs]
    h, final = op(x, R, bias, tuple(state), at, cell=cell)
    generator = torch.Generator().manual_seed(3)
    loss = sum((s.double() * torch.randn(s.shape, generator=generator, dtype=torch.float64)).sum() for s in (h, *final))
    return [h, *final, *torch.autograd.grad(loss, leaves)]


def error(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return ((a - b).norm() / b.norm().clamp(min=1e-30)).item()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("tokens", [1, 2, 40])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
@FORMS
def test_the_fast_forms_are_the_definition(op, cell, tokens, documents, dtype, bound):
    inputs, at = streams(cell, tokens, dtype), starts(tokens) if documents else None
    exact = values_and_gradients(naive.recurrent, cell, [s.double() for s in inputs], at)
    for got, want in zip(values_and_gradients(op, cell, inputs, at), exact, strict=True):
        assert error(got, want) <= bound or want.norm() < 1e-12


@pytest.mark.parametrize("cell", CELLS)
@FORMS
def test_gradcheck(op, cell):
    inputs = [s.requires_grad_() for s in streams(cell, 12, torch.float64)]

    def run(x: Tensor, R: Tensor, bias: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        h, final = op(x, R, bias, state, starts(12), cell=cell)
        return (h, *final)

    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize(("cell", "module"), [("lstm", torch.nn.LSTM), ("gru", torch.nn.GRU)])
@FORMS
def test_cells_are_pytorch_s(op, cell, module):
    theirs = module(7, V, batch_first=True).double()
    inputs = torch.randn(B, 30, 7, dtype=torch.float64)
    weight_x, weight_h, bias_x, bias_h = theirs.weight_ih_l0, theirs.weight_hh_l0, theirs.bias_ih_l0, theirs.bias_hh_l0
    M, state = CELLS[cell].gates, tuple(torch.zeros(B, 1, V, dtype=torch.float64) for _ in CELLS[cell].states)
    x = (inputs @ weight_x.T + bias_x).view(B, 30, 1, M, V)
    got, _ = op(x, weight_h.view(1, M, V, V), bias_h.view(1, M, V), state, cell=cell)
    want, _ = theirs(inputs)
    torch.testing.assert_close(got[:, :, 0], want)
    parameters = list(theirs.parameters())
    for a, b in zip(
        torch.autograd.grad(got.cos().sum(), parameters), torch.autograd.grad(want.cos().sum(), parameters), strict=True
    ):
        torch.testing.assert_close(a, b)


@FORMS
def test_slstm_is_the_paper_s_without_a_stabiliser(op):
    x, R, bias, *_ = streams("slstm", 30, torch.float64)
    zero = torch.zeros(B, H, V, dtype=torch.float64)
    got, _ = op(x, R, bias, (zero,) * 4, cell="slstm")
    h = c = n = zero
    for t in range(30):
        i, f, z, o = (x[:, t] + torch.einsum("hmvw,bhw->bhmv", R, h) + bias).unbind(2)
        c, n = f.sigmoid() * c + i.exp() * z.tanh(), f.sigmoid() * n + i.exp()
        h = o.sigmoid() * c / n
        torch.testing.assert_close(got[:, t], h)


@FORMS
def test_slstm_s_stabiliser_is_a_gauge(op):
    x, R, bias, h, c, n, m = streams("slstm", 20, torch.float64)
    a = torch.randn_like(m)
    want, _ = op(x, R, bias, (h, c, n, m), cell="slstm")
    got, _ = op(x, R, bias, (h, c * (-a).exp(), n * (-a).exp(), m + a), cell="slstm")
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("rows", "channels"), [(5, 21), (9, 16), (1, 70)])
def test_rows_together_and_tiles(cell, rows, channels):
    inputs = streams(cell, 12, torch.float64, rows, channels)
    at = torch.zeros(rows, 12, dtype=torch.bool)
    at[rows - 1, [0, 5]] = True
    want = values_and_gradients(naive.recurrent, cell, inputs, at)
    for got, exact in zip(values_and_gradients(loop.recurrent, cell, inputs, at), want, strict=True):
        assert error(got, exact) <= 1e-12


@pytest.mark.parametrize("cell", CELLS)
def test_the_loop_does_not_depend_on_threads(cell):
    inputs, before = streams(cell, 30, torch.float32, 6, 21), torch.get_num_threads()
    found = []
    for threads in (1, 7):
        torch.set_num_threads(threads)
        found.append(values_and_gradients(loop.recurrent, cell, inputs, None))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
