"""Optimizers: their settings, and the parameter groups that roles (llm/init.py) make of a model.

| kind | matrices | all else |
|---|---|---|
| adamw | AdamW | AdamW |
| muon | Muon (llm/train/muon.py) | AdamW |
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from llm.errors import ConfigError, did_you_mean
from llm.init import ROLES, parameter_roles
from llm.train.split_adamw import SplitAdamW

# Roles that Muon takes, where the parameter is one matrix: not the small ones per head (three dimensions), nor gates' few rows.
ORTHOGONAL = ("matrix", "output matrix")


@dataclass(frozen=True)
class AdamWConfig:
    """AdamW (Loshchilov & Hutter, arXiv:1711.05101).

    lr: the peak. weight_decay: of matrices; other roles do not decay. lr_scale: role -> factor of the rate. gradient_noise: eta of
    Gaussian noise of variance eta / (1 + step)^0.55 on every clipped gradient (Neelakantan et al., arXiv:1511.06807); null: none.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-3
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: float = 1e-8
    weight_decay: float = 0.1
    lr_scale: dict[str, float] = field(default_factory=dict)
    gradient_noise: float | None = None

    def check(self, where: str) -> None:
        """Raises ConfigError."""
        if not (0 < self.lr < math.inf and 0 < self.eps < math.inf):
            raise ConfigError(f"{where}.lr ({self.lr}) and {where}.eps ({self.eps}) must be positive and finite")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"{where}.betas ({self.betas}) must be two numbers, at least 0 and less than 1")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"{where}.weight_decay ({self.weight_decay}) must be finite and not negative; 0 switches it off")
        if self.gradient_noise is not None and not 0 < self.gradient_noise < math.inf:
            raise ConfigError(f"{where}.gradient_noise ({self.gradient_noise}) must be positive and finite, or null for none")
        for role, factor in self.lr_scale.items():
            if role not in ROLES:
                raise ConfigError(f"{where}.lr_scale names an unknown role {role!r}; {did_you_mean(role, ROLES)}")
            if not 0 <= factor < math.inf:
                raise ConfigError(f"{where}.lr_scale.{role} ({factor}) must be finite and not negative; 0 freezes the role")


@dataclass(frozen=True)
class MuonConfig(AdamWConfig):
    """Muon for matrices, AdamW with the settings above for the rest. Its updates are as large as AdamW's, so `lr` and
    `weight_decay` serve both. momentum: of the gradients of matrices.
    """

    kind: Literal["adamw", "muon"] = "muon"
    lr: float = 2e-3
    momentum: float = 0.95

    def check(self, where: str) -> None:
        """Raises ConfigError."""
        super().check(where)
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"{where}.momentum ({self.momentum}) must be at least 0 and less than 1")


OPTIMIZERS: dict[str, type[AdamWConfig]] = {"adamw": AdamWConfig, "muon": MuonConfig}


def parameter_groups(
    config: AdamWConfig, model: nn.Module, width_ratio: float = 1.0, frozen: Callable[[str], bool] = lambda name: False
) -> list[dict[str, Any]]:
    """Groups of what is treated alike: decay, precision, factor of the rate, optimizer. ZeRO flattens each group by itself.

    width_ratio: muP's base width / width (arXiv:2203.03466, table 8): hidden matrices' factor under AdamW. Muon's updates have a
    spectral norm of 0.2 sqrt(max(n, m)) lr, where sqrt(n / m) keeps activations' size (arXiv:2310.17813): its factor is the root.
    frozen: names whose rate is 0; they stay in groups, because checkpoints hold what the optimizer does.
    """
    roles = parameter_roles(model)
    kinds: dict[tuple[bool, bool, float, bool], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in model.named_parameters():
        role, matrix = ROLES[roles[name]], parameter.ndim == 2
        orthogonal = config.kind == "muon" and matrix and roles[name] in ORTHOGONAL
        factor = config.lr_scale.get(roles[name], 1.0)
        if role.hidden and matrix:
            factor *= width_ratio**0.5 if orthogonal else width_ratio
        factor = 0.0 if frozen(name) else factor
        kinds.setdefault((role.weight_decay, role.float32, factor, orthogonal), []).append((name, parameter))
    return [
        {
            "params": [parameter for _, parameter in named],
            "names": [name for name, _ in named],
            "shapes": [tuple(parameter.shape) for _, parameter in named],
            "weight_decay": config.weight_decay if decays else 0.0,
            "lr_scale": factor,
            "orthogonal": orthogonal,
        }
        for (decays, _, factor, orthogonal), named in sorted(kinds.items(), key=lambda kind: kind[0], reverse=True)
    ]


def create_optimizer(
    config: AdamWConfig,
    model: nn.Module,
    zero: int,
    precision: str,
    seed: int,
    width_ratio: float = 1.0,
    frozen: Callable[[str], bool] = lambda name: False,
) -> torch.optim.Optimizer:
    """torch's fused AdamW: the same element-wise arithmetic at every stage, on CPU and CUDA, without a build; with Muon or noise
    in front where they are wanted.
    """
    groups, betas = parameter_groups(config, model, width_ratio, frozen), (config.betas[0], config.betas[1])
    settings: dict[str, Any] = {"lr": config.lr, "betas": betas, "eps": config.eps, "weight_decay": 0.0, "fused": True}
    if config.kind == "adamw" and config.gradient_noise is None:
        return torch.optim.AdamW(groups, **settings)
    return SplitAdamW(
        groups,
        zero=zero,
        momentum=config.momentum if isinstance(config, MuonConfig) else 0.0,
        precision=torch.bfloat16 if precision == "bf16" else torch.float32,
        noise=config.gradient_noise,
        seed=seed,
        **settings,
    )


def set_rates(optimizer: Any, lr: float, step: int) -> None:
    """The rate of each group at this step; the step itself keys the gradient noise."""
    for group in optimizer.param_groups:
        group["lr"], group["at_step"] = lr * group["lr_scale"], step
