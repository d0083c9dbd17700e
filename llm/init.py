"""Every parameter's role: how it starts, whether it decays, in which precision it is kept. The one place for initialisation.

| role | start | weight decay | kept in float32 |
|---|---|---|---|
| embedding | N(0, 0.02) | no | no |
| matrix | N(0, 1 / fan-in) | yes | no |
| output matrix | N(0, 1 / (2 depth fan-in)) | yes | no |
| norm | 1 | no | yes |
| bias | 0 | no | yes |
| small bias | N(0, 0.1) | no | yes |
| gate matrix | 0 (xLSTM: gates start at their biases) | yes | no |
| shut gate bias | -10 (xLSTM-7B's input gate) | no | yes |
| forget gate bias | 3 to 6 over the heads (xLSTM) | no | yes |
| empty memory | 0 | no | yes |
| hidden memory | N(0, 1 / inputs) | no | yes |
| conv | U(-1, 1) / sqrt(taps) | no | no |
| skip | 1 | no | yes |
| step bias | softplus^-1 of a step drawn log-uniformly from 0.001 to 0.1 (Mamba) | no | yes |
| log rate per state | log 1, 2, ... N in every channel (Mamba, S4D-real) | no | yes |
| log rate per head | log U(1, 16) (Mamba-2) | no | yes |

A parameter starts from a generator of its own, seeded by (seed, name): values depend on neither order, device nor ranks.
"""

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

Start = Callable[[Tensor, Generator, int], Tensor]


def _normal(std: float) -> Start:
    return lambda p, generator, depth: torch.randn(p.shape, generator=generator) * std


def _matrix(p: Tensor, generator: Generator, depth: int) -> Tensor:
    return torch.randn(p.shape, generator=generator) * p.shape[-1] ** -0.5


def _hidden_memory(p: Tensor, generator: Generator, depth: int) -> Tensor:
    return torch.randn(p.shape, generator=generator) * p.shape[-2] ** -0.5


def _output_matrix(p: Tensor, generator: Generator, depth: int) -> Tensor:
    return _matrix(p, generator, depth) * (2 * depth) ** -0.5


def _constant(value: float) -> Start:
    return lambda p, generator, depth: torch.full(p.shape, value)


def _conv(p: Tensor, generator: Generator, depth: int) -> Tensor:
    return (torch.rand(p.shape, generator=generator) * 2 - 1) * p.shape[-1] ** -0.5


def _three_to_six(p: Tensor, generator: Generator, depth: int) -> Tensor:
    return torch.linspace(3.0, 6.0, p.numel()).view(p.shape)


def _step_bias(p: Tensor, generator: Generator, depth: int) -> Tensor:
    low, high = math.log(1e-3), math.log(1e-1)
    step = (torch.rand(p.shape, generator=generator) * (high - low) + low).exp()
    return step + torch.log(-torch.expm1(-step))


def _log_rate_per_head(p: Tensor, generator: Generator, depth: int) -> Tensor:
    return (torch.rand(p.shape, generator=generator) * 15 + 1).log()


def _log_rate_per_state(p: Tensor, generator: Generator, depth: int) -> Tensor:
    return torch.arange(1.0, p.shape[1] + 1).log().expand(p.shape)


@dataclass(frozen=True)
class Role:
    """hidden: matrices from width to width, whose updates must shrink as the width grows (muP's hidden weights)."""

    start: Start
    weight_decay: bool
    float32: bool
    hidden: bool = False


ROLES: dict[str, Role] = {
    "embedding": Role(_normal(0.02), weight_decay=False, float32=False),
    "matrix": Role(_matrix, weight_decay=True, float32=False, hidden=True),
    "output matrix": Role(_output_matrix, weight_decay=True, float32=False, hidden=True),
    "norm": Role(_constant(1.0), weight_decay=False, float32=True),
    "bias": Role(_constant(0.0), weight_decay=False, float32=True),
    "small bias": Role(_normal(0.1), weight_decay=False, float32=True),
    "gate matrix": Role(_constant(0.0), weight_decay=True, float32=False, hidden=True),
    "shut gate bias": Role(_constant(-10.0), weight_decay=False, float32=True),
    "forget gate bias": Role(_three_to_six, weight_decay=False, float32=True),
    "empty memory": Role(_constant(0.0), weight_decay=False, float32=True),
    "hidden memory": Role(_hidden_memory, weight_decay=False, float32=True),
    "conv": Role(_conv, weight_decay=False, float32=False),
    "skip": Role(_constant(1.0), weight_decay=False, float32=True),
    "step bias": Role(_step_bias, weight_decay=False, float32=True),
    "log rate per state": Role(_log_rate_per_state, weight_decay=False, float32=True),
    "log rate per head": Role(_log_rate_per_head, weight_decay=False, float32=True),
}

# What a name gives away; anything else is named in the `roles` of the module that owns it.
NAMES: tuple[tuple[str, str], ...] = (
    (r"(^|\.)(embedding|head)$", "embedding"),
    (r"(^|\.)(out_proj|down_proj)\.weight$", "output matrix"),
    (r"_proj\.weight$", "matrix"),
    (r"(^|\.)norm_weight$", "norm"),
    (r"(^|\.)(\w+_)?bias$", "bias"),
    (r"(^|\.)conv_weight$", "conv"),
)


def parameter_roles(model: nn.Module) -> dict[str, str]:
    """The name of each parameter's role. Raises KeyError for a parameter that falls through: its module must name one."""
    roles = {}
    for path, module in model.named_modules():
        for name, _ in module.named_parameters(recurse=False):
            full = f"{path}.{name}" if path else name
            named = getattr(module, "roles", {}).get(name)
            found = named or next((role for pattern, role in NAMES if re.search(pattern, full)), None)
            if found not in ROLES:
                raise KeyError(
                    f"parameter {full} has no role ({found}): name one of {', '.join(ROLES)} in {type(module).__name__}.roles"
                )
            roles[full] = found
    return roles


def pinned(model: nn.Module) -> set[str]:
    """Names of the parameters that are kept in float32, whatever the rest is in."""
    return {name for name, role in parameter_roles(model).items() if ROLES[role].float32}


@torch.no_grad()
def cast_model(model: nn.Module) -> None:
    """Parameters to bf16, except pinned ones."""
    kept = pinned(model)
    for name, parameter in model.named_parameters():
        if name not in kept:
            parameter.data = parameter.data.to(torch.bfloat16)


@torch.no_grad()
def initialise(model: nn.Module, seed: int, depth: int) -> None:
    """Fill every parameter of a model on a real device from (seed, its name)."""
    roles = parameter_roles(model)
    for name, parameter in model.named_parameters():
        digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        parameter.copy_(ROLES[roles[name]].start(parameter, generator, depth))
