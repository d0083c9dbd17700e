"""Mamba (Gu and Dao, arXiv:2312.00752): a selective state space with a decay per channel and state.

    u, z = x W_in      u = silu(conv(u))      r, B, C = u W_x      dt = softplus(r W_dt + dt_bias)
    h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t      y_t = C_t . h_t + D u_t      out = (y * silu(z)) W_out      A = -exp(A_log)

(alg. 2 and fig. 3). Layout and names as in the published code, so its weights can be loaded as they are; the bias of dt_proj is
`dt_bias` here, kept in float32.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm.cost import Cost, conv, conv_tail, projection, scan, scan_state_bytes, vector
from llm.errors import ConfigError
from llm.mixers.mixer import Mixer
from llm.ops.swiglu import swiglu
from llm.sequence import Seq, conv_state, named, scan_state
from llm.state import StateSpec, accumulator


@dataclass(frozen=True)
class MambaConfig:
    """state: N, per channel. dt_rank: null is width / 16, rounded up."""

    kind: str = "mamba"
    state: int = 16
    expand: int = 2
    taps: int = 4
    dt_rank: int | None = None

    def rank(self, width: int) -> int:
        return self.dt_rank or -(-width // 16)

    def check(self, where: str, width: int) -> None:
        """Raises ConfigError."""
        for name in ("state", "expand", "taps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{where}.{name} ({getattr(self, name)}) must be at least 1")
        if self.dt_rank is not None and self.dt_rank < 1:
            raise ConfigError(f"{where}.dt_rank ({self.dt_rank}) must be at least 1; null picks width / 16")

    def cost(self, width: int, context: int, bytes_per_value: int) -> Cost:
        inner, rank = self.expand * width, self.rank(width)
        projections = projection(width, 2 * inner) + projection(inner, rank + 2 * self.state)
        projections += projection(rank, inner) + projection(inner, width)
        convolution = conv(inner, self.taps) + vector(inner) + conv_tail(inner, self.taps, bytes_per_value)
        return (
            projections
            + convolution
            + vector(inner * (self.state + 2))
            + scan(inner, self.state)
            + scan_state_bytes(inner, self.state)
        )


class Mamba(Mixer):
    roles: ClassVar[dict[str, str]] = {"A_log": "log rate per state", "dt_bias": "step bias", "D": "skip"}

    def __init__(self, config: MambaConfig, width: int):
        super().__init__()
        self.config = config
        self.inner, self.rank = config.expand * width, config.rank(width)
        self.in_proj = nn.Linear(width, 2 * self.inner, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(self.inner, config.taps))
        self.conv_bias = nn.Parameter(torch.empty(self.inner))
        self.x_proj = nn.Linear(self.inner, self.rank + 2 * config.state, bias=False)
        self.dt_proj = nn.Linear(self.rank, self.inner, bias=False)
        self.dt_bias = nn.Parameter(torch.empty(self.inner))
        self.A_log = nn.Parameter(torch.empty(self.inner, config.state))
        self.D = nn.Parameter(torch.empty(self.inner))
        self.out_proj = nn.Linear(self.inner, width, bias=False)

    def mix(self, x_BTD: Tensor, seq: Seq) -> Tensor:
        u, z = self.in_proj(x_BTD).chunk(2, -1)
        u = F.silu(seq.conv("conv", u, self.conv_weight, self.conv_bias))
        r, B, C = self.x_proj(u).split([self.rank, self.config.state, self.config.state], -1)
        exact = accumulator(u.dtype)
        dt = F.softplus(self.dt_proj(r).to(exact) + self.dt_bias.to(exact))
        y = seq.scan("ssm", u, dt, -self.A_log.to(exact).exp(), B[:, :, None], C[:, :, None])
        return self.out_proj(swiglu(z, y + self.D.to(u.dtype) * u))

    def state_spec(self) -> dict[str, StateSpec]:
        return named("conv", conv_state(self.inner, self.config.taps)) | named("ssm", scan_state(self.inner, self.config.state))
