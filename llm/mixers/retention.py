"""Multi-scale retention (RetNet, Sun et al., arXiv:2307.08621).

    q_n = (x_n W_Q) e^{i n theta}       k_n = (x_n W_K) e^{i n theta}               (eqs. 3, 5)
    S_n = gamma S_{n-1} + k_n^T v_n     o_n = q_n S_n / sqrt(K)                     (eq. 6)
    gamma_h = 1 - 2^(-5-h)              y = (swish(x W_G) * GroupNorm_h(o)) W_O     (eq. 8)

The parallel, chunkwise and recurrent forms (eqs. 5, 7, 6) are the family `linear`'s. theta_i = base^(-2i/K), as in xPos, whose
exponential decay is gamma itself; the rotation is laid out half-split. The score normalisations of sec. 2.4 rescale each head's
output by a positive number and so cancel in the group norm: they are left out. Where paper and the published torchscale code
disagree the paper is followed: group norm with mean, weight and bias (code: RMS norm without), theta_i (code: K/2 points that
include both ends).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from omegaconf import MISSING
from torch import Tensor, nn

from llm.cost import Cost, linear, linear_state_bytes, projection, vector
from llm.errors import ConfigError
from llm.mixers.mixer import Mixer
from llm.ops.norm import head_norm
from llm.ops.swiglu import swiglu
from llm.sequence import Seq, linear_state, named
from llm.state import StateSpec, accumulator


@dataclass(frozen=True)
class RetentionConfig:
    """value_factor: value width over key width (2 in the paper). rope_theta: None is no rotation."""

    kind: str = "retention"
    heads: int = MISSING
    value_factor: int = 2
    rope_theta: float | None = 10000.0
    norm_eps: float = 1e-6

    def check(self, where: str, width: int) -> None:
        """Raises ConfigError."""
        if self.heads < 1 or width % self.heads:
            raise ConfigError(f"{where}.heads ({self.heads}) must divide model.width ({width}); use a divisor")
        if self.rope_theta is not None and (width // self.heads) % 2:
            raise ConfigError(
                f"{where}: rotary positions need an even key width per head ({width // self.heads}); "
                f"change {where}.heads or set {where}.rope_theta=null"
            )
        if self.value_factor < 1:
            raise ConfigError(f"{where}.value_factor ({self.value_factor}) must be at least 1; the paper uses 2")

    def cost(self, width: int, context: int, bytes_per_value: int) -> Cost:
        K, V = width // self.heads, self.value_factor * width // self.heads
        projections = projection(width, 2 * (1 + self.value_factor) * width) + projection(self.value_factor * width, width)
        return projections + vector(2 * self.heads * V) + linear(self.heads, K, V) + linear_state_bytes(self.heads, K, V)


class Retention(Mixer):
    roles: ClassVar[dict[str, str]] = {"head_norm_weight": "norm", "head_norm_bias": "bias"}

    def __init__(self, config: RetentionConfig, width: int):
        super().__init__()
        self.config = config
        self.heads = config.heads
        self.key_dim, self.value_dim = width // self.heads, config.value_factor * width // self.heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, config.value_factor * width, bias=False)
        self.gate_proj = nn.Linear(width, config.value_factor * width, bias=False)
        self.out_proj = nn.Linear(config.value_factor * width, width, bias=False)
        self.head_norm_weight = nn.Parameter(torch.empty(self.heads, self.value_dim))
        self.head_norm_bias = nn.Parameter(torch.empty(self.heads, self.value_dim))

    def mix(self, x_BTD: Tensor, seq: Seq) -> Tensor:
        q, k = (proj(x_BTD).unflatten(-1, (self.heads, self.key_dim)) for proj in (self.q_proj, self.k_proj))
        v = self.v_proj(x_BTD).unflatten(-1, (self.heads, self.value_dim))
        if self.config.rope_theta is not None:
            q, k = seq.rotary(q, k, theta=self.config.rope_theta)
        o_BTHV = seq.linear("retention", q, k, v, self.log_decay_H(x_BTD), scale=self.key_dim**-0.5)
        normed = head_norm(o_BTHV, self.head_norm_weight, self.head_norm_bias, self.config.norm_eps)
        return self.out_proj(swiglu(self.gate_proj(x_BTD), normed.flatten(-2)))

    def log_decay_H(self, x: Tensor) -> Tensor:
        """log gamma of each head, on x's device."""
        exponent = -5.0 - torch.arange(self.heads, device=x.device, dtype=accumulator(x.dtype))
        return torch.log1p(-(2.0**exponent))

    def state_spec(self) -> dict[str, StateSpec]:
        return named("retention", linear_state(self.heads, self.key_dim, self.value_dim))
