"""Convolution, block-diagonal maps, cross-entropy, rotary positions and norms against independent forms; and ops under autocast."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from llm.ops import dispatch
from llm.ops.blockwise import JOINED_ROWS, blockwise
from llm.ops.conv import chunk as conv_chunk
from llm.ops.conv import loop as conv_loop
from llm.ops.conv import naive as conv_naive
from llm.ops.cross_entropy import IGNORED, SLICE, cross_entropy
from llm.ops.norm import head_norm, rms_norm
from llm.ops.rotary import RopeScaling, rotary


def convolved(op, inputs: list[Tensor], at: Tensor | None, bias: bool) -> list[Tensor]:
    """Outputs, the tail that leaves, and every gradient."""
    x, weight, b, tail = leaves = [t.detach().clone().requires_grad_() for t in inputs]
    y, final = op(x, weight, b if bias else None, tail, at)
    generator = torch.Generator().manual_seed(3)
    loss = sum((out.double() * torch.randn(out.shape, generator=generator, dtype=torch.float64)).sum() for out in (y, final))
    return [y, final, *torch.autograd.grad(loss, leaves if bias else [x, weight, tail])]


def conv_inputs(tokens: int, channels: int, taps: int, dtype: torch.dtype) -> list[Tensor]:
    torch.manual_seed(0)
    sizes = ((2, tokens, channels), (channels, taps), (channels,), (2, taps - 1, channels))
    return [torch.randn(size).to(dtype) for size in sizes]


@pytest.mark.parametrize("op", [conv_chunk.conv, conv_loop.conv], ids=["chunk", "loop"])
@pytest.mark.parametrize("taps", [1, 2, 4])
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("tokens", "channels"), [(1, 3), (2, 3), (30, 3), (300, 70)])
def test_convolution_in_one_go_is_the_definition(op, taps, documents, bias, tokens, channels):
    inputs = conv_inputs(tokens, channels, taps, torch.float64)
    at = torch.rand(2, tokens) < 0.3 if documents else None
    for got, want in zip(*(convolved(form, inputs, at, bias) for form in (op, conv_naive.conv)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)


def test_the_convolution_s_loop_sums_bfloat16_in_float32():
    inputs, at = conv_inputs(300, 70, 4, torch.bfloat16), torch.rand(2, 300) < 0.1
    exact = convolved(conv_naive.conv, [x.double() for x in inputs], at, bias=True)
    for got, want in zip(convolved(conv_loop.conv, inputs, at, bias=True), exact, strict=True):
        assert got.dtype == torch.bfloat16
        # one rounding, at the end
        assert (got.double() - want).norm() <= 3e-3 * want.norm()


def test_convolution_is_a_padded_conv1d():
    x, weight = torch.randn(2, 20, 3), torch.randn(3, 4)
    want = F.conv1d(F.pad(x.transpose(1, 2), (3, 0)), weight[:, None], groups=3).transpose(1, 2)
    got, _ = conv_naive.conv(x, weight, None, torch.zeros(2, 3, 3))
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("tokens", [1, JOINED_ROWS])
@pytest.mark.parametrize(("blocks", "out", "into"), [(12, 4, 4), (7, 4, 4), (26, 3, 2), (2, 48, 48)])
def test_a_block_diagonal_map_is_one_of_the_whole_matrix(blocks, out, into, tokens):
    x = torch.randn(2, tokens, blocks * into, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(blocks, out, into, dtype=torch.float64, requires_grad=True)
    whole = F.linear(x, torch.block_diag(*weight))
    up = torch.randn_like(whole)
    for got, want in zip(*((y, *torch.autograd.grad(y, (x, weight), up)) for y in (blockwise(x, weight), whole)), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("z_loss", [0.0, 0.1])
@pytest.mark.parametrize("tokens", [1, SLICE, 2 * SLICE + 5])
def test_cross_entropy_in_slices_is_the_plain_one(tokens, z_loss, cap):
    torch.manual_seed(0)
    hidden = torch.randn(tokens, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(50, 16, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(50, (tokens,))
    labels[1::7] = IGNORED
    logits = hidden @ weight.T if cap is None else cap * (hidden @ weight.T / cap).tanh()
    want = F.cross_entropy(logits, labels, reduction="sum", ignore_index=IGNORED)
    squares = logits.logsumexp(-1)[labels != IGNORED].square().sum()
    got, got_squares = cross_entropy(hidden, weight, labels, z_loss, cap)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(got_squares, squares)
    assert not got_squares.requires_grad
    with torch.no_grad():
        torch.testing.assert_close(cross_entropy(hidden, weight, labels, z_loss, cap), (want, squares))
    wanted = torch.autograd.grad(3 * (want + z_loss * squares), [hidden, weight])
    for a, b in zip(torch.autograd.grad(3 * got, [hidden, weight]), wanted, strict=True):
        torch.testing.assert_close(a, b)


def test_rotary_scores_depend_on_distance_alone():
    torch.manual_seed(0)
    q, k = torch.randn(1, 1, 1, 8, dtype=torch.float64), torch.randn(1, 1, 1, 8, dtype=torch.float64)

    def score(n: int, m: int) -> float:
        return (rotary(q, torch.tensor([[n]]), 1e4) * rotary(k, torch.tensor([[m]]), 1e4)).sum().item()

    assert score(7, 3) == pytest.approx(score(104, 100), rel=1e-10)
    assert score(7, 3) != pytest.approx(score(8, 3), rel=1e-3)


def test_rotary_is_that_of_llama():
    from transformers.models.llama.configuration_llama import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    x, position = torch.randn(2, 9, 3, 8), torch.arange(9).expand(2, 9)
    config = LlamaConfig(hidden_size=24, num_attention_heads=3, head_dim=8, rope_theta=10000.0)
    cos, sin = LlamaRotaryEmbedding(config)(x, position)
    want, _ = apply_rotary_pos_emb(x.transpose(1, 2), x.transpose(1, 2), cos, sin)
    torch.testing.assert_close(rotary(x, position, 10000.0), want.transpose(1, 2), rtol=1e-5, atol=1e-6)


LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}
YARN = {"factor": 4.0, "original_max_position_embeddings": 48, "beta_fast": 9.0}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (RopeScaling("linear", 3.0), {"rope_type": "linear", "factor": 3.0}),
        (RopeScaling("llama3", 8.0, 64), {"rope_type": "llama3", **LLAMA3}),
        (RopeScaling("yarn", 4.0, 48, fast=9.0), {"rope_type": "yarn", **YARN}),
        (RopeScaling("yarn", 4.0, 48, 0.5, 9.0, 1.5), {"rope_type": "yarn", **YARN, "beta_slow": 0.5, "attention_factor": 1.5}),
        # all channels alike, where even the fastest turns too seldom
        (RopeScaling("yarn", 4.0, 5), {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 5}),
    ],
    ids=["linear", "llama3", "yarn", "yarn_set", "yarn_short"],
)
def test_scaled_rotary_is_that_of_transformers(ours, theirs):
    from transformers.models.llama.configuration_llama import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    x, position = torch.randn(2, 300, 1, 32), torch.arange(300).expand(2, 300)
    rope = {"rope_theta": 1e4, **theirs}
    config = LlamaConfig(hidden_size=32, num_attention_heads=1, head_dim=32, max_position_embeddings=192, rope_parameters=rope)
    cos, sin = LlamaRotaryEmbedding(config)(x, position)
    want, _ = apply_rotary_pos_emb(x.transpose(1, 2), x.transpose(1, 2), cos, sin)
    got = rotary(x, position, 1e4, scaling=ours)
    torch.testing.assert_close(got, want.transpose(1, 2), rtol=1e-5, atol=1e-4)
    assert not torch.allclose(got, rotary(x, position, 1e4), atol=1e-2)


def test_norms():
    x = torch.randn(2, 3, 4, 8)
    torch.testing.assert_close(rms_norm(x, torch.ones(8), 1e-6), x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt())
    weight, bias = torch.randn(4, 8), torch.randn(4, 8)
    grouped = F.group_norm(x.flatten(0, 1).flatten(1), 4, weight.flatten(), bias.flatten(), eps=1e-6).view_as(x)
    torch.testing.assert_close(head_norm(x, weight, bias, 1e-6), grouped, rtol=1e-5, atol=1e-5)


def test_ops_are_not_autocast():
    """Float32 streams stay float32 inside an autocast region, to the bit."""
    q, k, v = torch.randn(1, 70, 2, 4), torch.randn(1, 70, 2, 4), torch.randn(1, 70, 2, 4)
    streams = (q, k, v, torch.tensor([-0.1, -0.2]), torch.zeros(1, 2, 4, 4), None)
    want = dispatch.run("linear", 70, *streams)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = dispatch.run("linear", 70, *streams)
        assert (q[0, :, 0] @ k[0, :, 0].T).dtype == torch.bfloat16
    for a, b in zip(got, want, strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)
