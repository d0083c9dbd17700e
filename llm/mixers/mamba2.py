"""Mamba-2 (Dao and Gu, arXiv:2405.21060): a selective state space with one decay per head.

    z, (x, B, C), dt = x W_in           x, B, C = silu(conv(x, B, C))         dt = softplus(dt + dt_bias)
    S_t = exp(dt_t A) S_{t-1} + B_t (dt_t x_t)^T      y_t = C_t S_t + D x_t   A = -exp(A_log)         (SSD, sec. 2 and 7)
    out = RMSNorm(y * silu(z)) W_out

Layout and names as in the published code (`mamba_ssm` Mamba2: in_proj gives z | x | B | C | dt, the norm follows the gate and runs
within each group), so its weights can be loaded as they are; without its clamp of dt.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from omegaconf import MISSING
from torch import Tensor, nn
from torch.nn import functional as F

from llm.cost import Cost, conv, conv_tail, linear, linear_state_bytes, projection, vector
from llm.errors import ConfigError
from llm.mixers.mixer import Mixer
from llm.ops.norm import rms_norm
from llm.ops.swiglu import swiglu
from llm.sequence import Seq, conv_state, linear_state, named
from llm.state import StateSpec, accumulator


@dataclass(frozen=True)
class Mamba2Config:
    """heads: of head_dim channels each; null: expand * width / heads. state: N, the size of B and C. groups: of heads that share B
    and C.
    """

    kind: str = "mamba2"
    heads: int = MISSING
    state: int = 128
    groups: int = 1
    expand: int = 2
    head_dim: int | None = None
    taps: int = 4
    norm_eps: float = 1e-5

    def inner(self, width: int) -> int:
        """Channels of all heads."""
        return self.expand * width if self.head_dim is None else self.heads * self.head_dim

    def check(self, where: str, width: int) -> None:
        """Raises ConfigError."""
        for name in ("heads", "state", "groups", "expand", "taps", "head_dim"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{where}.{name} ({value}) must be at least 1")
        inner = self.inner(width)
        if inner % self.heads:
            raise ConfigError(f"{where}.heads ({self.heads}) must divide {where}.expand x model.width ({inner}); use a divisor")
        if self.heads % self.groups:
            raise ConfigError(f"{where}.groups ({self.groups}) must divide {where}.heads ({self.heads}); use a divisor")

    def cost(self, width: int, context: int, bytes_per_value: int) -> Cost:
        inner, shared = self.inner(width), 2 * self.groups * self.state
        H, K, V = self.heads, self.state, inner // self.heads
        projections = projection(width, 2 * inner + shared + H) + projection(inner, width)
        convolution = (
            conv(inner + shared, self.taps) + vector(inner + shared) + conv_tail(inner + shared, self.taps, bytes_per_value)
        )
        return projections + convolution + vector(3 * H + inner) + linear(H, K, V, self.groups) + linear_state_bytes(H, K, V)


class Mamba2(Mixer):
    roles: ClassVar[dict[str, str]] = {"A_log": "log rate per head", "dt_bias": "step bias", "D": "skip"}

    def __init__(self, config: Mamba2Config, width: int):
        super().__init__()
        self.config = config
        self.inner, self.shared = config.inner(width), config.groups * config.state
        self.in_proj = nn.Linear(width, 2 * self.inner + 2 * self.shared + config.heads, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(self.inner + 2 * self.shared, config.taps))
        self.conv_bias = nn.Parameter(torch.empty(self.inner + 2 * self.shared))
        self.A_log = nn.Parameter(torch.empty(config.heads))
        self.dt_bias = nn.Parameter(torch.empty(config.heads))
        self.D = nn.Parameter(torch.empty(config.heads))
        self.norm_weight = nn.Parameter(torch.empty(self.inner))
        self.out_proj = nn.Linear(self.inner, width, bias=False)

    def mix(self, x_BTD: Tensor, seq: Seq) -> Tensor:
        c = self.config
        z, streams, dt_BTH = self.in_proj(x_BTD).split([self.inner, self.inner + 2 * self.shared, c.heads], -1)
        streams = F.silu(seq.conv("conv", streams, self.conv_weight, self.conv_bias))
        x, B, C = streams.split([self.inner, self.shared, self.shared], -1)
        x_BTHV, B_BTGN, C_BTGN = x.unflatten(-1, (c.heads, -1)), *(s.unflatten(-1, (c.groups, -1)) for s in (B, C))
        exact = accumulator(x.dtype)
        dt_BTH = F.softplus(dt_BTH.to(exact) + self.dt_bias.to(exact))
        y_BTHV = seq.linear("ssd", C_BTGN, B_BTGN, x_BTHV, -self.A_log.to(exact).exp(), step_BTH=dt_BTH)
        y = swiglu(z, (y_BTHV + self.D[:, None].to(x.dtype) * x_BTHV).flatten(-2))
        normed = rms_norm(y.unflatten(-1, (c.groups, -1)), None, c.norm_eps).flatten(-2)
        return self.out_proj(normed * self.norm_weight.to(y.dtype))

    def state_spec(self) -> dict[str, StateSpec]:
        heads, value = self.config.heads, self.inner // self.config.heads
        tail = conv_state(self.inner + 2 * self.shared, self.config.taps)
        return named("conv", tail) | named("ssd", linear_state(heads, self.config.state, value))
