"""Mamba-2 against `transformers` with copied weights: outputs and every gradient."""

import torch
from transformers.models.mamba2.configuration_mamba2 import Mamba2Config as TheirConfig
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from llm.init import initialise
from llm.mixers.mamba2 import Mamba2, Mamba2Config

WIDTH, HEADS, STATE, GROUPS = 32, 4, 16, 2


def pair() -> tuple[Mamba2, Mamba2Mixer]:
    ours = Mamba2(Mamba2Config(heads=HEADS, state=STATE, groups=GROUPS), WIDTH)
    initialise(ours, seed=0, depth=2)
    config = TheirConfig(
        hidden_size=WIDTH, num_heads=HEADS, head_dim=2 * WIDTH // HEADS, state_size=STATE, n_groups=GROUPS, chunk_size=16, expand=2
    )
    theirs = Mamba2Mixer(config, layer_idx=0)
    names = {"norm_weight": "norm.weight", "conv_weight": "conv1d.weight", "conv_bias": "conv1d.bias"}
    with torch.no_grad():
        ours.norm_weight.add_(0.1 * torch.randn_like(ours.norm_weight))
        ours.D.add_(0.1 * torch.randn_like(ours.D))
        for name, parameter in ours.named_parameters():
            target = theirs.get_parameter(names.get(name, name))
            target.copy_(parameter.view_as(target))
    return ours, theirs


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_outputs_and_gradients_are_those_of_transformers():
    torch.manual_seed(0)
    ours, theirs = pair()
    x = torch.randn(2, 150, WIDTH)
    weight = torch.randn(2, 150, WIDTH)
    results = []
    for run in (lambda x: ours(x)[0], theirs):
        leaf = x.clone().requires_grad_()
        y = run(leaf)
        (y * weight).sum().backward()
        results.append((y.detach(), leaf.grad))
    for a, b in zip(*results, strict=True):
        assert error(a, b) <= 1e-5
    names = {"norm_weight": "norm.weight", "conv_weight": "conv1d.weight", "conv_bias": "conv1d.bias"}
    for name, parameter in ours.named_parameters():
        expected = theirs.get_parameter(names.get(name, name)).grad
        assert error(parameter.grad, expected.view_as(parameter.grad)) <= 1e-5, name
