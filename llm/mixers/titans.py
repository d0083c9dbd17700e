"""Titans: a neural memory that learns at test time, alone or beside attention (Behrouz et al., arXiv:2501.00663).

    q, k, v = silu(conv(x W))      q, k = q / |q|, k / |k|                                               (eq. 11; sec. 4.4)
    S_t = eta_t S_{t-1} - theta_t grad ||M(k_t) - v_t||^2      M_t = (1 - alpha_t) M_{t-1} + S_t         (eqs. 12-14)
    m_t = M_t(q_t)                 m = (LayerNorm_head(m) * silu(x W_G)) W_O                             (eq. 15; sec. 4.4)

`variant: memory` is this layer alone (LMM). `mag` (eqs. 26-28) runs it beside attention in a sliding window and multiplies,
out = (LayerNorm_head(a) * silu(LayerNorm_head(m))) W_O, where the second branch is the gate. `mal` (eqs. 29-31) gives the memory
layer's output to the attention. `mac` (eqs. 21-25) attends within segments, over what the memory answered before and the tokens:

    h_j = M'(q_j)    a_i = attention of i on persistent tokens, h_j and x_j, j <= i    out = (norm(a) * silu(norm(M_i(a_i)))) W_O

M' is the memory at the segment's start, M_i the one that learned from a up to token i. Chunks, gradients at the chunk's first
weights and documents are the family `memory`'s; a segment of `mac` is the memory's chunk.

Where mac departs from the paper: read literally, its equations show a token what later ones of its segment retrieve, and a memory
that has learned from them; here it sees neither. What leads from the memory to attention's keys and values and from attention
to the memory are maps per head, so heads never meet inside the recurrence; only the query that asks before is convolved.

Choices where the paper leaves them open. alpha, eta and theta are data-dependent per token and head, and theta is written
step_max (1 - eta) sigmoid(.), so that the momentum is an average of gradients (`ops/memory/naive.py`) and those of a chunk enter
the memory with weights that sum to step_max C at most. With 1 / C, the default of `step_max`, a linear memory stays bounded even
where all keys are the same, which it does not when theta is free of eta. The memory is a matrix (`depth: 1`) or two with SiLU
between (`depth: 2`), and starts from learned weights, whose own start is zero in the last matrix. Persistent tokens are learned
keys and values that every query of the attention sees, without a position, which is what they come to there (sec. 3.3); the memory
does not read them: data-independent knowledge of its own are its initial weights.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from omegaconf import MISSING
from torch import Tensor, nn
from torch.nn import functional as F

from llm.cost import (
    Cost,
    attention,
    attention_cache,
    context,
    conv,
    conv_tail,
    memory,
    memory_state_bytes,
    projection,
    segment_attention,
    segment_cache_bytes,
    vector,
)
from llm.errors import ConfigError
from llm.mixers.mixer import Mixer
from llm.ops.memory.naive import Maps, rates
from llm.ops.norm import head_norm
from llm.ops.swiglu import swiglu
from llm.sequence import Seq, attention_state, context_state, conv_state, memory_state, named
from llm.state import StateSpec, accumulator

VARIANTS = ("memory", "mac", "mag", "mal")


@dataclass(frozen=True)
class TitansConfig:
    """depth: matrices of the memory; expand: hidden width over the key width, of two. window: of mag and mal."""

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
        if self.variant == "memory" and self.persistent:
            raise ConfigError(
                f"{where}.persistent ({self.persistent}) is attention's, which variant memory has not; use variant mac, mag or mal"
            )
        if self.variant in ("memory", "mac") and self.window is not None:
            raise ConfigError(
                f"{where}.window ({self.window}) belongs to variants mag and mal; the segments of mac are {where}.chunk tokens"
            )
        if self.variant != "memory":
            self._check_attention(where, width)

    def _check_attention(self, where: str, width: int) -> None:
        if self.variant != "mac" and (self.window is None or self.window < 1):
            raise ConfigError(f"{where}.window ({self.window}) of variant {self.variant} counts the token itself; use 1 or more")
        if self.persistent < 0:
            raise ConfigError(f"{where}.persistent ({self.persistent}) counts learned keys and values; use 0 or more")
        if self.rope_theta is not None and (width // self.heads) % 2:
            raise ConfigError(
                f"{where}: rotary positions need an even width per head ({width // self.heads}); "
                f"change {where}.heads or set {where}.rope_theta=null"
            )

    def cost(self, width: int, context_length: int, bytes_per_value: int) -> Cost:
        H, K, sizes = self.heads, width // self.heads, self.sizes(width)
        asked = width if self.variant == "mac" else 3 * width
        total = projection(width, asked) + conv(asked, self.taps) + conv_tail(asked, self.taps, bytes_per_value)
        total += vector(width) + projection(width, width) + memory_state_bytes(H, sizes)
        if self.variant == "mac":
            total += context(H, sizes, self.chunk) + segment_attention(H, K, K, self.chunk, self.persistent)
            total += segment_cache_bytes(H, K, K, self.chunk, bytes_per_value)
        else:
            total += projection(width, 3 * H) + vector(3 * H) + memory(H, sizes, self.chunk)
        if self.variant in ("memory", "mal"):
            total += projection(width, width)
        if self.variant in ("mag", "mal"):
            total += attention(H, K, K, context_length, self.window) + Cost(flops=4.0 * width * self.persistent)
            total += attention_cache(H, K, K, context_length, self.window, bytes_per_value)
        if self.variant != "memory":
            total += projection(width, 3 * width) + vector(width) + vector(2 * self.persistent * width)
        if self.variant == "mal":
            total += projection(width, width)
        return total


class Titans(Mixer):
    roles: ClassVar[dict[str, str]] = {
        "rate_weight": "gate matrix",
        "retrieved_weight": "matrix",
        "memorised_weight": "matrix",
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
        if config.variant == "mac":
            self.query_proj = nn.Linear(width, width, bias=False)
            self.conv_weight = nn.Parameter(torch.empty(width, config.taps))
            self.retrieved_weight = nn.Parameter(torch.empty(self.heads, 2 * self.head_dim, self.head_dim))
            self.memorised_weight = nn.Parameter(torch.empty(self.heads, 3 * self.head_dim, self.head_dim))
            self.rate_weight = nn.Parameter(torch.empty(self.heads, 3, self.head_dim))
        else:
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
        if config.variant in ("memory", "mal"):
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
        if self.config.variant == "mac":
            attended, remembered = self.attend_with_memory(x_BTD, seq)
            return self.out_proj(swiglu(remembered, attended))
        remembered = self.remember(x_BTD, seq)
        if self.config.variant == "mag":
            return self.out_proj(swiglu(remembered, self.attend(x_BTD, seq)))
        gated = swiglu(self.gate_proj(x_BTD), remembered)
        if self.config.variant == "mal":
            gated = self.attend(self.memory_proj(gated), seq)
        return self.out_proj(gated)

    def remember(self, x_BTD: Tensor, seq: Seq) -> Tensor:
        """The memory's normed reads, `[B, T, D]`."""
        qkv = F.silu(seq.conv("conv", self.qkv_proj(x_BTD), self.conv_weight))
        q, k, v = (x.unflatten(-1, (self.heads, -1)) for x in qkv.chunk(3, -1))
        exact = accumulator(x_BTD.dtype)
        q, k = (F.normalize(x.to(exact), dim=-1) for x in (q, k))
        gates = F.linear(x_BTD, self.rate_weight).to(exact).unflatten(-1, (3, -1)) + self.rate_bias(exact)
        log_keep, log_momentum, step = rates(gates.movedim(-2, 0), self.step_max)
        m_BTHV = seq.memory("memory", q, k, v, log_keep, log_momentum, step, self.initial, chunk=self.config.chunk)
        return head_norm(m_BTHV, self.head_norm_weight, None, self.config.norm_eps).flatten(-2)

    @property
    def initial(self) -> list[Tensor]:
        """The memory's matrices before a document."""
        return [self.initial_out] if self.config.depth == 1 else [self.initial_hidden, self.initial_out]

    def rate_bias(self, dtype: torch.dtype) -> Tensor:
        """Of keep, momentum and step, `[3, H]`."""
        return torch.stack([self.keep_bias, self.momentum_bias, self.step_bias]).to(dtype)

    def attend_with_memory(self, x_BTD: Tensor, seq: Seq) -> tuple[Tensor, Tensor]:
        """Normed attention within segments with what the memory retrieves, and the memory's normed reads, each `[B, T, D]`."""
        exact, eps = accumulator(x_BTD.dtype), self.config.norm_eps
        maps = Maps(self.retrieved_weight, self.memorised_weight, self.rate_weight, self.rate_bias(exact).T)
        query = F.silu(seq.conv("conv", self.query_proj(x_BTD), self.conv_weight)).unflatten(-1, (self.heads, -1))
        q, k, v = (x.unflatten(-1, (self.heads, -1)) for x in self.attention_proj(x_BTD).chunk(3, -1))
        streams = (q, k, v, F.normalize(query.to(exact), dim=-1))
        chunk, step_max, theta = self.config.chunk, self.step_max, self.config.rope_theta
        a_BTHV, m_BTHV = seq.context(
            "memory", *streams, maps, self.initial, chunk=chunk, step_max=step_max, theta=theta, prefix=self.prefix
        )
        attended = head_norm(a_BTHV, self.attention_norm_weight, None, eps)
        return attended.flatten(-2), head_norm(m_BTHV, self.head_norm_weight, None, eps).flatten(-2)

    @property
    def prefix(self) -> tuple[Tensor, Tensor] | None:
        """Keys and values of the persistent tokens, `[n, H, K]`."""
        return (self.persistent_k, self.persistent_v) if self.config.persistent else None

    def attend(self, x_BTD: Tensor, seq: Seq) -> Tensor:
        """Normed attention in the window and on the persistent tokens, `[B, T, D]`."""
        q, k, v = (x.unflatten(-1, (self.heads, -1)) for x in self.attention_proj(x_BTD).chunk(3, -1))
        if self.config.rope_theta is not None:
            q, k = seq.rotary(q, k, theta=self.config.rope_theta)
        a_BTHV = seq.attention("attention", q, k, v, window=self.config.window, prefix=self.prefix)
        return head_norm(a_BTHV, self.attention_norm_weight, None, self.config.norm_eps).flatten(-2)

    def state_spec(self) -> dict[str, StateSpec]:
        tail = named("conv", conv_state(*self.conv_weight.shape))
        if self.config.variant == "mac":
            return tail | named("memory", context_state(self.heads, self.sizes, self.config.chunk))
        spec = tail | named("memory", memory_state(self.heads, self.sizes))
        if self.config.variant == "memory":
            return spec
        return spec | named("attention", attention_state(self.heads, self.head_dim, self.head_dim, self.config.window))
