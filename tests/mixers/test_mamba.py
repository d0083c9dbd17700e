"""Mamba against `transformers` with copied weights: outputs and every gradient."""

import torch
from transformers.models.mamba.configuration_mamba import MambaConfig as TheirConfig
from transformers.models.mamba.modeling_mamba import MambaMixer

from llm.init import initialise
from llm.mixers.mamba import Mamba, MambaConfig

WIDTH, STATE = 32, 8
THEIR_NAMES = {"conv_weight": "conv1d.weight", "conv_bias": "conv1d.bias", "dt_bias": "dt_proj.bias"}


def pair() -> tuple[Mamba, MambaMixer]:
    ours = Mamba(MambaConfig(state=STATE), WIDTH)
    initialise(ours, seed=0, depth=2)
    theirs = MambaMixer(TheirConfig(hidden_size=WIDTH, state_size=STATE, num_hidden_layers=1), layer_idx=0)
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
            target = theirs.get_parameter(THEIR_NAMES.get(name, name))
            target.copy_(parameter.view_as(target))
    return ours, theirs


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def test_outputs_and_gradients_are_those_of_transformers():
    torch.manual_seed(0)
    ours, theirs = pair()
    x, weight = torch.randn(2, 100, WIDTH), torch.randn(2, 100, WIDTH)
    results = []
    for run in (lambda x: ours(x)[0], theirs):
        leaf = x.clone().requires_grad_()
        y = run(leaf)
        (y * weight).sum().backward()
        results.append((y.detach(), leaf.grad))
    for a, b in zip(*results, strict=True):
        assert error(a, b) <= 1e-5
    for name, parameter in ours.named_parameters():
        expected = theirs.get_parameter(THEIR_NAMES.get(name, name)).grad
        assert error(parameter.grad, expected.view_as(parameter.grad)) <= 1e-5, name
