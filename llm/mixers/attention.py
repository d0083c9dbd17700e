"""Softmax attention: multi-head, grouped or multi-query, full or in a sliding window, with rotary positions.

Vaswani et al., arXiv:1706.03762 eq. 1; grouped queries, arXiv:2305.13245; the window counts the token itself, as in Mistral
(arXiv:2310.06825); per-head RMSNorm of queries and keys before the rotation, as in Qwen3; scores a softly capped to
c tanh(a / c), as in Gemma 2 (arXiv:2408.00118); an output gate for each channel of each head, y * sigmoid(x W_g) before the
output projection (arXiv:2505.06708 sec. 2.2, position G1), as in Qwen3-Next; rotation of a part of the channels, as in GPT-NeoX.

Some heads may be a recurrence instead: `recurrent` is a Mamba-2 beside the attention whose output is added, as if its heads lay
before the same output projection (RecurFormer, arXiv:2410.12850).

Scores are scaled by head_dim^-1/2; another scale, such as Gemma 2's query_pre_attn_scalar^-1/2, is a factor of q_proj.
"""

from dataclasses import dataclass

from omegaconf import MISSING
from torch import Tensor, nn

from llm.cost import Cost, attention, attention_cache, capped_attention, projection, vector
from llm.errors import ConfigError
from llm.mixers.mamba2 import Mamba2, Mamba2Config
from llm.mixers.mixer import Mixer
from llm.ops.norm import RMSNorm
from llm.ops.rotary import RopeScaling
from llm.sequence import Seq, attention_state, named
from llm.state import StateSpec


@dataclass(frozen=True)
class AttentionConfig:
    """kv_heads: None is as many as heads. head_dim: None is width / heads. window, rope_theta, soft_cap: None is without.

    rope_fraction: of each head's channels, the first ones, that positions turn. rope_scaling: for longer contexts. recurrent: more
    heads, without a cache that grows.
    """

    kind: str = "attention"
    heads: int = MISSING
    kv_heads: int | None = None
    head_dim: int | None = None
    window: int | None = None
    rope_theta: float | None = 10000.0
    rope_fraction: float = 1.0
    rope_scaling: RopeScaling | None = None
    qk_norm: bool = False
    norm_eps: float = 1e-6
    soft_cap: float | None = None
    gate: bool = False
    recurrent: Mamba2Config | None = None

    def sizes(self, width: int) -> tuple[int, int, int]:
        """Heads, key/value heads, channels per head."""
        return self.heads, self.kv_heads or self.heads, self.head_dim or width // self.heads

    def rope_channels(self, width: int) -> int:
        return int(self.rope_fraction * self.sizes(width)[2])

    def check(self, where: str, width: int) -> None:
        """Raises ConfigError."""
        if self.heads < 1 or (self.head_dim is None and width % self.heads):
            raise ConfigError(f"{where}.heads ({self.heads}) must divide model.width ({width}); change it or set {where}.head_dim")
        H, G, K = self.sizes(width)
        if G < 1 or H % G:
            raise ConfigError(f"{where}.kv_heads ({G}) must divide {where}.heads ({H}); use a divisor of {H}")
        if not 0 < self.rope_fraction <= 1:
            raise ConfigError(
                f"{where}.rope_fraction ({self.rope_fraction}) is a share of the channels; use 0 < rope_fraction <= 1"
            )
        if self.rope_theta is not None and (self.rope_channels(width) % 2 or not self.rope_channels(width)):
            turned = f"head_dim ({K})" if self.rope_fraction == 1 else f"rope_fraction ({self.rope_fraction}) x head_dim ({K})"
            raise ConfigError(f"{where}: rotary positions need an even {turned}; change it or set {where}.rope_theta=null")
        if self.rope_scaling is not None:
            if self.rope_theta is None:
                raise ConfigError(f"{where}.rope_scaling has no effect without positions ({where}.rope_theta null); remove it")
            self.rope_scaling.check(f"{where}.rope_scaling")
        if self.recurrent is not None:
            self.recurrent.check(f"{where}.recurrent", width)
        if self.window is not None and self.window < 1:
            raise ConfigError(f"{where}.window ({self.window}) counts the token itself; use 1 or more, or null for full attention")
        if self.soft_cap is not None and self.soft_cap <= 0:
            raise ConfigError(f"{where}.soft_cap ({self.soft_cap}) bounds the scores and must be above 0; use 50, or null for none")

    def cost(self, width: int, context: int, bytes_per_value: int) -> Cost:
        H, G, K = self.sizes(width)
        norms = vector(2 * K) if self.qk_norm else Cost()
        projections = projection(width, ((2 if self.gate else 1) * H + 2 * G) * K) + projection(H * K, width)
        beside = Cost() if self.recurrent is None else self.recurrent.cost(width, context, bytes_per_value)
        attend = attention if self.soft_cap is None else capped_attention
        return (
            beside
            + projections
            + norms
            + attend(H, K, K, context, self.window)
            + attention_cache(G, K, K, context, self.window, bytes_per_value)
        )


class Attention(Mixer):
    def __init__(self, config: AttentionConfig, width: int):
        super().__init__()
        self.config = config
        self.heads, self.kv_heads, self.head_dim = config.sizes(width)
        self.rope_channels = config.rope_channels(width)
        self.q_proj = nn.Linear(width, self.heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(width, self.kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(width, self.kv_heads * self.head_dim, bias=False)
        self.gate_proj = nn.Linear(width, self.heads * self.head_dim, bias=False) if config.gate else None
        self.out_proj = nn.Linear(self.heads * self.head_dim, width, bias=False)
        self.q_norm = RMSNorm(self.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(self.head_dim, config.norm_eps) if config.qk_norm else None
        self.recurrent = None if config.recurrent is None else Mamba2(config.recurrent, width)

    def mix(self, x_BTD: Tensor, seq: Seq) -> Tensor:
        q, k = self.queries_and_keys(x_BTD, seq)
        v = self.v_proj(x_BTD).unflatten(-1, (-1, self.head_dim))
        y = seq.attention("attention", q, k, v, window=self.config.window, soft_cap=self.config.soft_cap).flatten(-2)
        if self.gate_proj is not None:
            y = y * self.gate_proj(x_BTD).sigmoid()
        y_BTD = self.out_proj(y)
        return y_BTD if self.recurrent is None else y_BTD + self.recurrent.mix(x_BTD, seq)

    def queries_and_keys(self, x_BTD: Tensor, seq: Seq) -> tuple[Tensor, Tensor]:
        """(q `[B, T, H, K]`, k `[B, T, G, K]`), normed and turned as they meet."""
        q, k = (proj(x_BTD).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.config.rope_theta is not None:
            q, k = seq.rotary(q, k, theta=self.config.rope_theta, channels=self.rope_channels, scaling=self.config.rope_scaling)
        return q, k

    def state_spec(self) -> dict[str, StateSpec]:
        cache = named("attention", attention_state(self.kv_heads, self.head_dim, self.head_dim, self.config.window))
        return cache if self.recurrent is None else cache | self.recurrent.state_spec()
