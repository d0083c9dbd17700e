"""mLSTM as in xLSTM-7B (Beck et al., arXiv:2503.13427; the memory cell: arXiv:2405.04517 eqs. 19-27).

    i = cap(x W_i + b_i)    f = cap(x W_f + b_f)    o = sigmoid(x W_o)         cap(a) = c tanh(a / c)
    C_t = sigmoid(f_t) C_{t-1} + e^{i_t} k_t v_t^T      n_t = sigmoid(f_t) n_{t-1} + e^{i_t} k_t
    h_t = C_t^T q_t / max(|n_t . q_t|, 1)               out = (o * LayerNorm_head(h)) W_out

Queries and keys have half the values' width; no convolution, no rotation. The published code adds 1e-6 to the denominator, which
the norm that follows cancels; the papers do not, and neither do we. `mlstm_paper` is the first paper's block.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from omegaconf import MISSING
from torch import Tensor, nn
from torch.nn import functional as F

from llm.cost import Cost, mlstm, mlstm_state_bytes, projection, vector
from llm.errors import ConfigError
from llm.mixers.mixer import Mixer
from llm.ops.norm import head_norm
from llm.sequence import Seq, mlstm_state, named
from llm.state import StateSpec, accumulator


@dataclass(frozen=True)
class MLSTMConfig:
    """qk_factor: width of queries and keys over the model's. gate_cap: null leaves the gates uncapped."""

    kind: str = "mlstm"
    heads: int = MISSING
    qk_factor: float = 0.5
    gate_cap: float | None = 15.0
    norm_eps: float = 1e-6

    def sizes(self, width: int) -> tuple[int, int]:
        """Key and value channels per head."""
        return int(self.qk_factor * width) // self.heads, width // self.heads

    def check(self, where: str, width: int) -> None:
        """Raises ConfigError."""
        if self.heads < 1 or width % self.heads:
            raise ConfigError(f"{where}.heads ({self.heads}) must divide model.width ({width}); use a divisor")
        if self.qk_factor * width / self.heads % 1 or self.qk_factor <= 0:
            raise ConfigError(
                f"{where}.qk_factor ({self.qk_factor}) x model.width ({width}) must be a multiple of {where}.heads ({self.heads})"
            )
        if self.gate_cap is not None and self.gate_cap <= 0:
            raise ConfigError(f"{where}.gate_cap ({self.gate_cap}) must be positive, or null for no cap")

    def cost(self, width: int, context: int, bytes_per_value: int) -> Cost:
        H, (K, V) = self.heads, self.sizes(width)
        projections = projection(width, 2 * H * K + 2 * width + 2 * H) + projection(width, width)
        return projections + vector(2 * H + width) + mlstm(H, K, V) + mlstm_state_bytes(H, K, V)


class MLSTM(Mixer):
    roles: ClassVar[dict[str, str]] = {
        "input_weight": "gate matrix",
        "forget_weight": "gate matrix",
        "input_bias": "shut gate bias",
        "forget_bias": "forget gate bias",
        "head_norm_weight": "norm",
    }

    def __init__(self, config: MLSTMConfig, width: int):
        super().__init__()
        self.config = config
        H, (self.key_dim, self.value_dim) = config.heads, config.sizes(width)
        self.q_proj = nn.Linear(width, H * self.key_dim, bias=False)
        self.k_proj = nn.Linear(width, H * self.key_dim, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.gate_proj = nn.Linear(width, width, bias=False)
        self.input_weight = nn.Parameter(torch.empty(H, width))
        self.input_bias = nn.Parameter(torch.empty(H))
        self.forget_weight = nn.Parameter(torch.empty(H, width))
        self.forget_bias = nn.Parameter(torch.empty(H))
        self.head_norm_weight = nn.Parameter(torch.empty(H, self.value_dim))
        self.out_proj = nn.Linear(width, width, bias=False)

    def mix(self, x_BTD: Tensor, seq: Seq) -> Tensor:
        q, k, v = (proj(x_BTD).unflatten(-1, (self.config.heads, -1)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        log_input = self.gate(x_BTD, self.input_weight, self.input_bias)
        log_forget = F.logsigmoid(self.gate(x_BTD, self.forget_weight, self.forget_bias))
        h_BTHV = seq.mlstm("mlstm", q, k, v, log_input, log_forget, scale=self.key_dim**-0.5)
        normed = head_norm(h_BTHV, self.head_norm_weight, None, self.config.norm_eps).flatten(-2)
        return self.out_proj(self.gate_proj(x_BTD).sigmoid() * normed)

    def gate(self, x_BTD: Tensor, weight_HD: Tensor, bias_H: Tensor) -> Tensor:
        """`[B, T, H]` in the accumulator's dtype."""
        exact = accumulator(x_BTD.dtype)
        gate, cap = F.linear(x_BTD, weight_HD).to(exact) + bias_H.to(exact), self.config.gate_cap
        return gate if cap is None else cap * (gate / cap).tanh()

    def state_spec(self) -> dict[str, StateSpec]:
        return named("mlstm", mlstm_state(self.config.heads, self.key_dim, self.value_dim))
