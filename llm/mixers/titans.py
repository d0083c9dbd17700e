"""Titans: a neural memory that learns at test time, alone or beside attention (Behrouz et al., arXiv:2501.00663).

    q, k, v = silu(conv(x W))      q, k = q / |q|, k / |k|                                               (eq. 11; sec. 4.4)
    S_t = eta_t S_{t-1} - theta_t grad ||M(k_t) - v_t||^2      M_t = (1 - alpha_t) M_{t-1} + S_t         (eqs. 12-14)
    m_t = M_t(q_t)                 m = (LayerNorm_head(m) * silu(x W_G)) W_O                             (eq. 15; sec. 4.4)

`variant: memory` is this layer alone (LMM). `mag` (eqs. 26-28) runs it beside attention in a sliding window and multiplies,
out = (LayerNorm_head(a) * silu(LayerNorm_head(m))) W_O, where the second branch is the gate. `mal` (eqs. 29-31) gives the memory
layer's output to the attention. Chunks, gradients at the chunk's first weights and documents are the family `memory`'s.

Choices where the paper leaves them open. alpha, eta and theta are data-dependent per token and head, and theta is written
step_max (1 - eta) sigmoid(.): since sum_s (1 - eta_s) eta_{s+1} ... eta_t <= 1, the momentum is then an average of gradients, and
however the rates vary, those of a chunk enter the memory with weights that sum to step_max C at most. With 1 / C, the default of
`step_max`, a linear memory stays bounded even where all keys are the same, which it does not when theta is free of eta. The memory
is a matrix (`depth: 1`) or two with SiLU between (`depth: 2`), and starts from learned weights, whose own start is zero in the last
matrix. Persistent tokens are learned keys and values that every query of the attention sees, without a position, which is what they
come to there (sec. 3.3); the memory does not read them: data-independent knowledge of its own are its initial weights.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from omegaconf import MISSING
from torch import Tensor, nn
from torch.nn import functional as F

from llm.cost import Cost, attention, attention_cache, conv, conv_tail, memory, memory_state_bytes, projection, vector
from llm.errors import ConfigError
from llm.mixers.mixer import Mixer
from llm.ops.norm import head_norm
from llm.sequence import Seq, attention_state, conv_state, memory_state, named
from llm.state import StateSpec, accumulator

VARIANTS = ("memory", "mag", "mal")


@dataclass(frozen=True)
class TitansConfig:
    """depth: matrices of the memory; expand: hidden width over the key width, of two. window, persistent: of mag and mal."""

    kind: str = "titans"
    heads: int = MISSING
    variant: str = "memory"
    depth: int = 1
    expand: int = 2
    chunk: int = 64
    step_max: float | None = None
    taps: int = 4
    window: int | None = None
    persistent: int = 0
    rope_theta: float | None = 10000.0
    norm_eps: float = 1e-6

    def sizes(self, width: int) -> tuple[int, ...]:
        """Channels per head into, between and out of the memory's matrices."""
        K = width // self.heads
        return (K, K) if self.depth == 1 else (K, self.expand * K, K)

    def check(self, where: str, width: int) -> None:
        """Raises ConfigError."""
        if self.variant not in VARIANTS:
            raise ConfigError(f"{where}.variant ({self.variant}) must be one of {', '.join(VARIANTS)}")
        if self.heads < 1 or width % self.heads:
            raise ConfigError(f"{where}.heads ({self.heads}) must divide model.width ({width}); use a divisor")
        if self.depth not in (1, 2):
            raise ConfigError(f"{where}.depth ({self.depth}) is the number of the memory's matrices; use 1 or 2")
        for name in ("expand", "chunk", "taps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{where}.{name} ({getattr(self, name)}) must be at least 1")
        if self.step_max is not None and self.step_max <= 0:
            raise ConfigError(f"{where}.step_max ({self.step_max}) must be positive, or null for 1 / {where}.chunk")
        if self.variant == "memory":
            self._check_no_attention(where)
        else:
            self._check_attention(where, width)

    def _check_no_attention(self, where: str) -> None:
        for name, unset in (("window", None), ("persistent", 0)):
            if getattr(self, name) != unset:
                raise ConfigError(
                    f"{where}.{name} ({getattr(self, name)}) is attention's, which variant memory has not; use variant mag or mal"
                )

    def _check_attention(self, where: str, width: int) -> None:
        if self.window is None or self.window < 1:
            raise ConfigError(f"{where}.window ({self.window}) of variant {self.variant} counts the token itself; use 1 or more")
        if self.persistent < 0:
            raise ConfigError(f"{where}.persistent ({self.persistent}) counts learned keys and values; use 0 or more")
        if self.rope_theta is not None and (width // self.heads) % 2:
            raise ConfigError(
                f"{where}: rotary positions need an even width per head ({width // self.heads}); "
                f"change {where}.heads or set {where}.rope_theta=null"
            )

    def cost(self, width: int, context: int, bytes_per_value: int) -> Cost:
        H, K, sizes = self.heads, width // self.heads, self.sizes(width)
        total = projection(width, 3 * width + 3 * H) + vector(3 * H + width) + projection(width, width)
        total += conv(3 * width, self.taps) + conv_tail(3 * width, self.taps, bytes_per_value)
        total += memory(H, sizes, self.chunk) + memory_state_bytes(H, sizes)
        if self.variant != "mag":
            total += projection(width, width)
        if self.variant != "memory":
            total += projection(width, 3 * width) + vector(width) + vector(2 * self.persistent * width)
            total += attention(H, K, K, context, self.window) + Cost(flops=4.0 * width * self.persistent)
            total += attention_cache(H, K, K, context, self.window, bytes_per_value)
        if self.variant == "mal":
            total += projection(width, width)
        return total


class Titans(Mixer):
    roles: ClassVar[dict[str, str]] = {
        "rate_weight": "gate matrix",
        "keep_bias": "forget gate bias",
        "initial_hidden": "hidden memory",
        "initial_out": "empty memory",
        "head_norm_weight": "norm",
        "attention_norm_weight": "norm",
        "persistent_k": "embedding",
        "persistent_v": "embedding",
    }

    def __init__(self, config: TitansConfig, width: int):
        super().__init__()
        self.config, self.width = config, width
        self.heads, self.head_dim = config.heads, width // config.heads
        self.sizes = config.sizes(width)
        self.step_max = config.step_max or 1 / config.chunk
        self.qkv_proj = nn.Linear(width, 3 * width, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(3 * width, config.taps))
        self.rate_weight = nn.Parameter(torch.empty(3 * self.heads, width))
        self.keep_bias = nn.Parameter(torch.empty(self.heads))
        self.momentum_bias = nn.Parameter(torch.empty(self.heads))
        self.step_bias = nn.Parameter(torch.empty(self.heads))
        if config.depth == 2:
            self.initial_hidden = nn.Parameter(torch.empty(self.heads, *self.sizes[:2]))
        self.initial_out = nn.Parameter(torch.empty(self.heads, *self.sizes[-2:]))
        self.head_norm_weight = nn.Parameter(torch.empty(self.heads, self.head_dim))
        if config.variant != "mag":
            self.gate_proj = nn.Linear(width, width, bias=False)
        if config.variant == "mal":
            self.memory_proj = nn.Linear(width, width, bias=False)
        if config.variant != "memory":
            self.attention_proj = nn.Linear(width, 3 * width, bias=False)
            self.attention_norm_weight = nn.Parameter(torch.empty(self.heads, self.head_dim))
        if config.persistent:
            self.persistent_k = nn.Parameter(torch.empty(config.persistent, self.heads, self.head_dim))
            self.persistent_v = nn.Parameter(torch.empty(config.persistent, self.heads, self.head_dim))
        self.out_proj = nn.Linear(width, width, bias=False)

    def mix(self, x_BTD: Tensor, seq: Seq) -> Tensor:
        remembered = self.remember(x_BTD, seq)
        if self.config.variant == "mag":
            return self.out_proj(self.attend(x_BTD, seq) * F.silu(remembered))
        gated = remembered * F.silu(self.gate_proj(x_BTD))
        if self.config.variant == "mal":
            gated = self.attend(self.memory_proj(gated), seq)
        return self.out_proj(gated)

    def remember(self, x_BTD: Tensor, seq: Seq) -> Tensor:
        """The memory's normed reads, `[B, T, D]`."""
        qkv = F.silu(seq.conv("conv", self.qkv_proj(x_BTD), self.conv_weight))
        q, k, v = (x.unflatten(-1, (self.heads, -1)) for x in qkv.chunk(3, -1))
        exact = accumulator(x_BTD.dtype)
        q, k = (F.normalize(x.to(exact), dim=-1) for x in (q, k))
        keep, momentum, step = F.linear(x_BTD, self.rate_weight).to(exact).chunk(3, -1)
        log_keep = F.logsigmoid(keep + self.keep_bias.to(exact))
        log_momentum = F.logsigmoid(momentum + self.momentum_bias.to(exact))
        step = self.step_max * (1 - log_momentum.exp()) * (step + self.step_bias.to(exact)).sigmoid()
        initial = [self.initial_out] if self.config.depth == 1 else [self.initial_hidden, self.initial_out]
        m_BTHV = seq.memory("memory", q, k, v, log_keep, log_momentum, step, initial, chunk=self.config.chunk)
        return head_norm(m_BTHV, self.head_norm_weight, None, self.config.norm_eps).flatten(-2)

    def attend(self, x_BTD: Tensor, seq: Seq) -> Tensor:
        """Normed attention in the window and on the persistent tokens, `[B, T, D]`."""
        q, k, v = (x.unflatten(-1, (self.heads, -1)) for x in self.attention_proj(x_BTD).chunk(3, -1))
        if self.config.rope_theta is not None:
            q, k = seq.rotary(q, k, theta=self.config.rope_theta)
        prefix = (self.persistent_k, self.persistent_v) if self.config.persistent else None
        a_BTHV = seq.attention("attention", q, k, v, window=self.config.window, prefix=prefix)
        return head_norm(a_BTHV, self.attention_norm_weight, None, self.config.norm_eps).flatten(-2)

    def state_spec(self) -> dict[str, StateSpec]:
        spec = named("conv", conv_state(3 * self.width, self.config.taps)) | named("memory", memory_state(self.heads, self.sizes))
        if self.config.variant == "memory":
            return spec
        return spec | named("attention", attention_state(self.heads, self.head_dim, self.head_dim, self.config.window))
