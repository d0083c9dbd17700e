"""Fast weights: the definition is the paper's equations on autograd's gradient; the chunks are the definition."""

import itertools
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from llm.ops.memory import chunk, layout, loop, naive
from llm.ops.memory.naive import Memory

B, H, K, V = 2, 2, 4, 3
C = 8
# positions before the first token: a fresh row, rows inside a chunk, at a chunk's end and at its start
OFFSETS = ([0, 5], [C, 2 * C - 1])
FORMS = pytest.mark.parametrize("op", [chunk.memory, loop.memory], ids=["chunk", "loop"])
DEPTHS = pytest.mark.parametrize("sizes", [(K, V), (K, 5, V)], ids=["linear", "mlp"])


def positions(tokens: int, offsets: list[int], documents: bool) -> Tensor:
    at = torch.arange(tokens) + torch.tensor(offsets)[:, None]
    if documents:
        for row, starts in enumerate(([C - 1, C, 2 * C + 1, 3 * C + 4, 3 * C + 5], [5, 5 + C, 6 + 3 * C])):
            for start in (s for s in starts if s < tokens):
                at[row, start:] = torch.arange(tokens - start)
    return at


def inputs_of(tokens: int, sizes: tuple[int, ...]) -> list[Tensor]:
    """q, k, v, log keep, log momentum, step, then per matrix: initial weights, start, weights, momentum. In float64."""
    generator = torch.Generator().manual_seed(tokens)
    normal = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    q, k, v = normal(B, tokens, H, K), F.normalize(normal(B, tokens, H, K), dim=-1), normal(B, tokens, H, V)
    gates = [F.logsigmoid(normal(B, tokens, H) + b) for b in (3.0, 0.0)] + [0.05 * normal(B, tokens, H).sigmoid()]
    shapes = list(itertools.pairwise(sizes))
    return [q, k, v, *gates] + [s[0] ** -0.5 * normal(*([] if part == 0 else [B]), H, *s) for part in range(4) for s in shapes]


def run(op, inputs: list[Tensor], position: Tensor | None) -> list[Tensor]:
    """y and the parts of the final memory."""
    layers = (len(inputs) - 6) // 4
    initial, *parts = (tuple(inputs[6 + i * layers : 6 + (i + 1) * layers]) for i in range(4))
    y, final = op(*inputs[:6], initial, Memory(*parts), position, chunk=C)
    return [y, *itertools.chain(*final)]


def values_and_gradients(op, inputs: list[Tensor], position: Tensor | None) -> list[Tensor]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    values = run(op, leaves, position)
    generator = torch.Generator().manual_seed(3)
    loss = sum((x.double() * torch.randn(x.shape, generator=generator, dtype=torch.float64)).sum() for x in values)
    return [*values, *torch.autograd.grad(loss, leaves, materialize_grads=True)]


def error(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return ((a - b).norm() / b.norm().clamp(min=1e-30)).item()


def paper(inputs: list[Tensor], position: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """One sequence and head at a time; the loss is differentiated by autograd at the chunk's first weights."""
    q, k, v, log_keep, log_momentum, step = inputs[:6]
    layers = len(sizes) - 1
    initial, _, weights, _ = (inputs[6 + i * layers : 6 + (i + 1) * layers] for i in range(4))
    y = torch.empty_like(v)

    def remember(memory: list[Tensor], x: Tensor) -> Tensor:
        for w in memory[:-1]:
            x = F.silu(x @ w)
        return x @ memory[-1]

    for b, h in itertools.product(range(B), range(H)):
        memory, surprise = [w[b, h] for w in weights], None
        for t in range(q.shape[1]):
            if position[b, t] == 0:
                memory, surprise = [w[h] for w in initial], [torch.zeros_like(w[h]) for w in initial]
            if position[b, t] % C == 0:
                start = [w.detach().clone().requires_grad_() for w in memory]
            loss = (remember(start, k[b, t, h]) - v[b, t, h]).square().sum()
            gradient = torch.autograd.grad(loss, start)
            surprise = [log_momentum[b, t, h].exp() * s - step[b, t, h] * g for s, g in zip(surprise, gradient, strict=True)]
            memory = [log_keep[b, t, h].exp() * w + s for w, s in zip(memory, surprise, strict=True)]
            y[b, t, h] = remember(memory, q[b, t, h])
    return y


@DEPTHS
def test_definition_is_the_paper_on_autograd_s_gradient(sizes):
    inputs, position = inputs_of(30, sizes), positions(30, [0, 0], documents=True)
    assert error(run(naive.memory, inputs, position)[0], paper(inputs, position, sizes)) <= 1e-13


@DEPTHS
@pytest.mark.parametrize("tokens", [1, C, C + 1, 4 * C + 3])
@pytest.mark.parametrize("offsets", OFFSETS)
@pytest.mark.parametrize("documents", [False, True])
@FORMS
def test_chunks_are_the_definition(op, sizes, tokens, offsets, documents):
    inputs, position = inputs_of(tokens, sizes), positions(tokens, offsets, documents)
    exact = values_and_gradients(naive.memory, inputs, position)
    for dtype, bound in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        for got, want in zip(values_and_gradients(op, [x.to(dtype) for x in inputs], position), exact, strict=True):
            assert error(got, want) <= bound


@DEPTHS
def test_no_position_is_one_document(sizes):
    inputs, position = inputs_of(3 * C + 2, sizes), positions(3 * C + 2, [0, 0], documents=False)
    want = values_and_gradients(naive.memory, inputs, position)
    for op in (naive.memory, chunk.memory, loop.memory):
        for a, b in zip(values_and_gradients(op, inputs, None), want, strict=True):
            assert error(a, b) <= 1e-12


@DEPTHS
@FORMS
def test_chunks_that_hold_nothing_change_nothing(op, sizes):
    """To the bit: how many chunks documents fall into is bounded, not counted, where counting waits for a device."""
    inputs, position = inputs_of(3 * C, sizes), positions(3 * C, [3, 0], documents=True)
    counted = values_and_gradients(op, inputs, position)
    more = values_and_gradients(partial(op, chunks=9), inputs, position)
    assert all(torch.equal(a, b) for a, b in zip(more, counted, strict=True))


@DEPTHS
@pytest.mark.parametrize("cuts", [[1], [C], [C + 3, C + 4], [C - 1, 3 * C]])
@FORMS
def test_splits_are_one_pass(op, sizes, cuts):
    tokens = 4 * C + 3
    inputs, position = inputs_of(tokens, sizes), positions(tokens, [3, C - 1], documents=True)
    layers = len(sizes) - 1
    whole = run(op, inputs, position)
    state, outputs = inputs[6 + layers :], []
    for first, last in itertools.pairwise([0, *cuts, tokens]):
        streams = [x[:, first:last] for x in inputs[:6]]
        y, *state = run(op, [*streams, *inputs[6 : 6 + layers], *state], position[:, first:last])
        outputs.append(y)
    for a, b in zip([torch.cat(outputs, 1), *state], whole, strict=True):
        torch.testing.assert_close(a, b)


@FORMS
def test_bfloat16_streams_keep_float32_memories(op):
    inputs, position = inputs_of(4 * C, (K, V)), positions(4 * C, [0, 5], documents=True)
    rounded = [x.bfloat16() for x in inputs[:3]] + [x.float() for x in inputs[3:]]
    exact = values_and_gradients(naive.memory, [x.double() for x in rounded], position)
    got = values_and_gradients(op, rounded, position)
    assert [x.dtype for x in got[:4]] == [torch.bfloat16, torch.float32, torch.float32, torch.float32]
    for a, b in zip(got, exact, strict=True):
        assert error(a, b) <= 1e-2


@FORMS
def test_steep_and_equal_decays_stay_exact(op):
    """Where momentum and forgetting are equal, the closed form has a pole; where they are steep, its quotients overflow."""
    inputs, position = inputs_of(4 * C, (K, V)), positions(4 * C, [0, 5], documents=True)
    for log_keep, log_momentum in ((-0.3, -0.3), (-90.0, -90.0), (0.0, 0.0), (-1e-4, -80.0)):
        decays = [torch.full_like(inputs[3], log_keep), torch.full_like(inputs[4], log_momentum)]
        given = [*inputs[:3], *decays, *inputs[5:]]
        exact = values_and_gradients(naive.memory, given, position)
        for got, want in zip(values_and_gradients(op, [x.float() for x in given], position), exact, strict=True):
            assert torch.isfinite(got).all()
            assert (got.double() - want).norm() <= 1e-5 * want.norm() + 1e-12


def test_chunks_of_one_without_momentum_are_the_delta_rule():
    """W_t = a_t W_{t-1} + b_t k_t (v_t - k_t W_{t-1})^T with b = 2 theta."""
    inputs = inputs_of(20, (K, V))
    inputs[4] = torch.full_like(inputs[4], -200.0)
    q, k, v, log_keep, _, step, initial, *_ = inputs
    W, outputs = initial.expand(B, H, K, V), []
    for t in range(20):
        missing = v[:, t] - torch.einsum("bhk,bhkv->bhv", k[:, t], W)
        W = log_keep[:, t, :, None, None].exp() * W + 2 * step[:, t, :, None, None] * k[:, t, :, :, None] * missing[:, :, None]
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, t], W))
    parts = Memory(*((x,) for x in inputs[7:]))
    for op in (naive.memory, chunk.memory, loop.memory):
        y, _ = op(*inputs[:6], (initial,), parts, None, chunk=1)
        assert error(y, torch.stack(outputs, 1)) <= 1e-13


def test_padding_is_what_documents_leave_empty():
    assert layout.padding(torch.arange(4 * C)[None], C) == 0
    assert layout.padding(positions(2 * C, [3, 3], documents=False), C) == 0.5
    lengths = torch.cat([torch.arange(n) for n in (C, 1, 2 * C - 1)])[None]
    assert layout.padding(lengths, C) == pytest.approx(4 * C / (3 * C) - 1)


@pytest.mark.parametrize(("keys", "values", "chunk_size"), [(17, 33, 20), (64, 64, 64), (3, 40, 130)])
def test_widths_and_chunks_that_fill_vectors_and_that_do_not(keys, values, chunk_size):
    generator = torch.Generator().manual_seed(0)
    normal = lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)  # noqa: E731
    T, k = 150, F.normalize(normal(B, 150, H, keys), dim=-1)
    gates = [F.logsigmoid(normal(B, T, H) + b) for b in (3.0, 0.0)] + [normal(B, T, H).sigmoid() / chunk_size]
    inputs = [normal(B, T, H, keys), k, normal(B, T, H, values), *gates]
    inputs += [normal(*([] if part == 0 else [B]), H, keys, values) for part in range(4)]
    position = torch.stack([torch.arange(T) + 11, torch.cat([torch.arange(70), torch.arange(80)])])

    def op(*args, chunk: int):
        return loop.memory(*args, chunk=chunk_size)

    def definition(*args, chunk: int):
        return naive.memory(*args, chunk=chunk_size)

    pairs = zip(*(values_and_gradients(form, inputs, position) for form in (op, definition)), strict=True)
    assert all(error(got, want) <= 1e-11 for got, want in pairs)


def test_the_loop_does_not_depend_on_threads():
    inputs, position = [x.float() for x in inputs_of(4 * C, (K, V))], positions(4 * C, [0, 5], documents=True)
    before, found = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(values_and_gradients(loop.memory, inputs, position))
    torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
