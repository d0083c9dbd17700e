"""The neural memory against titans-pytorch's, as far as that goes.

Made the same: a store chunk of one token, so that every token has its own gates and reads a memory that holds it; `batch_size`, the
tokens for which gradients are taken at the same weights, for our chunk; the sum of squares for their mean; our activation; one head
and no norms. Then the two are one in outputs, states and every gradient.

Used otherwise (0.5.5) it is another model. In store chunks of several tokens, momentum and forgetting come from the chunk's mean,
and tokens read the memory after whole chunks only. Without a `batch_size`, the default, all gradients are taken at the initial
weights: our memory in a single chunk, whose outputs are 0.35 off (relative norm) those in chunks of 16 for the linear memory here.
"""

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from llm.ops.memory.naive import Memory
from tests.peers import peers
from tests.peers.parity import FLOAT32, Form, differences, forms, within

B, T, K, C, HIDDEN, STEP = 2, 75, 6, 16, 9, 0.01
SIZES = {1: [(K, K)], 2: [(K, HIDDEN), (HIDDEN, K)]}
MAPS = ("queries", "keys", "values", "adaptive_step", "momentum", "decay_factor")


class Stack(nn.Module):
    """Matrices with SiLU between them."""

    def __init__(self, depth: int):
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(size) / size[0] ** 0.5 for size in SIZES[depth])

    def forward(self, x: Tensor) -> Tensor:
        for layer, w in enumerate(self.weights):
            x = (F.silu(x) if layer else x) @ w
        return x


def memory(depth: int, chunk: int | None) -> nn.Module:
    torch.manual_seed(0)
    return peers.load("titans_pytorch.neural_memory").NeuralMemory(
        dim=K,
        chunk_size=1,
        batch_size=chunk,
        model=Stack(depth),
        store_memory_loss_fn=lambda prediction, target: (prediction - target).pow(2).sum(-1),
        default_step_transform_max_lr=STEP,
        pre_rmsnorm=False,
        mem_model_norm_add_residual=False,
    )


def ours(op, depth: int, chunk: int) -> Form:
    """With the maps of theirs."""

    def run(x, **p) -> list[Tensor]:
        streams = [F.linear(x, p[f"to_{name}.weight"] if name in MAPS[:3] else p[f"to_{name}.0.weight"]) for name in MAPS]
        q, k, v, *gates = (s[:, :, None] for s in streams)
        step, momentum, decay = (g[..., 0] + p[f"to_{name}.0.bias"] for name, g in zip(MAPS[3:], gates, strict=True))
        initial = tuple(p[f"memory_model_parameters.{layer}"] for layer in range(depth))
        start = tuple(w.expand(B, *w.shape) for w in initial)
        state = Memory(start, start, tuple(map(torch.zeros_like, start)))
        logs = (F.logsigmoid(-decay), F.logsigmoid(momentum))
        y, final = op(q, k, v, *logs, STEP * step.sigmoid(), initial, state, chunk=chunk)
        return [y[:, :, 0], *final.weights, *final.momentum]

    return run


def theirs(layer: nn.Module, depth: int) -> Form:
    def run(x, **p) -> list[Tensor]:
        y, state = functional_call(layer, p, x)
        weights, momentum = ([part[f"weights.{i}"] for i in range(depth)] for part in state.states)
        return [y, *(w[:, None] for w in weights), *(s[0][:, None] for s in momentum)]

    return run


@pytest.mark.parametrize("chunk", [C, None], ids=["chunks", "one chunk"])
@pytest.mark.parametrize("depth", SIZES)
@forms("memory")
def test_memory_is_that_of_titans_pytorch(op, depth, chunk):
    layer = memory(depth, chunk)
    inputs = {name: p for name, p in layer.named_parameters() if not name.startswith("memory_model.")}
    inputs["x"] = torch.randn(B, T, K)
    within(differences(ours(op, depth, chunk or T), theirs(layer, depth), inputs), FLOAT32)
