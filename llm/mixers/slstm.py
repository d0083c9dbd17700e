"""sLSTM (Beck et al., arXiv:2405.04517 eqs. 8-17 and fig. 10): scalar memories that mix through a recurrent matrix per head.

    c = silu(conv(x))        i, f = c W_i, c W_f        z, o = x W_z, x W_o        (block-diagonal, a block per head)
    h_t = sLSTM(i, f, z, o; h_{t-1} R + b)              out = LayerNorm_head(h)

As in the published `xlstm` package: no projection follows the norm, and the recurrent matrix starts at 0. (In that package the map
named fgate feeds the input gate's slot; here each feeds its own.)
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from omegaconf import MISSING
from torch import Tensor, nn
from torch.nn import functional as F

from llm.cost import Cost, block_projection, conv, conv_tail, recurrent, recurrent_state_bytes, vector
from llm.errors import ConfigError
from llm.mixers.mixer import Mixer
from llm.ops.norm import head_norm
from llm.ops.recurrent.cells import CELLS
from llm.sequence import Seq, conv_state, named, recurrent_state
from llm.state import StateSpec, accumulator

GATES, STATES = CELLS["slstm"].gates, len(CELLS["slstm"].states)


@dataclass(frozen=True)
class SLSTMConfig:
    """taps: of the convolution before the input and forget gates; 0: none."""

    kind: str = "slstm"
    heads: int = MISSING
    taps: int = 4
    norm_eps: float = 1e-5

    def check(self, where: str, width: int) -> None:
        """Raises ConfigError."""
        if self.heads < 1 or width % self.heads:
            raise ConfigError(f"{where}.heads ({self.heads}) must divide model.width ({width}); use a divisor")
        if self.taps < 0:
            raise ConfigError(f"{where}.taps ({self.taps}) must be at least 1, or 0 for no convolution")

    def cost(self, width: int, context: int, bytes_per_value: int) -> Cost:
        V = width // self.heads
        total = recurrent(self.heads, V, GATES) + recurrent_state_bytes(width, STATES) + vector(GATES * width + width)
        for _ in range(GATES):
            total += block_projection(width, V)
        if self.taps:
            total += conv(width, self.taps) + vector(width) + conv_tail(width, self.taps, bytes_per_value)
        return total


class SLSTM(Mixer):
    roles: ClassVar[dict[str, str]] = {
        "gate_weight": "matrix",
        "recurrent_weight": "gate matrix",
        "input_bias": "bias",
        "forget_bias": "forget gate bias",
        "other_bias": "bias",
        "head_norm_weight": "norm",
    }

    def __init__(self, config: SLSTMConfig, width: int):
        super().__init__()
        self.config = config
        H, V = config.heads, width // config.heads
        if config.taps:
            self.conv_weight = nn.Parameter(torch.empty(width, config.taps))
            self.conv_bias = nn.Parameter(torch.empty(width))
        self.gate_weight = nn.Parameter(torch.empty(GATES, H, V, V))
        self.recurrent_weight = nn.Parameter(torch.empty(H, GATES, V, V))
        self.input_bias = nn.Parameter(torch.empty(H, 1, V))
        self.forget_bias = nn.Parameter(torch.empty(H, 1, V))
        self.other_bias = nn.Parameter(torch.empty(H, 2, V))
        self.head_norm_weight = nn.Parameter(torch.empty(H, V))

    def mix(self, x_BTD: Tensor, seq: Seq) -> Tensor:
        c_BTD = F.silu(seq.conv("conv", x_BTD, self.conv_weight, self.conv_bias)) if self.config.taps else x_BTD
        c, x = (s.unflatten(-1, (self.config.heads, -1)) for s in (c_BTD, x_BTD))
        gates = [torch.einsum("bthv,ghwv->bthgw", s, w) for s, w in zip((c, x), self.gate_weight.split(2), strict=True)]
        bias = torch.cat([self.input_bias, self.forget_bias, self.other_bias], 1)
        streams = torch.cat(gates, -2).to(accumulator(x.dtype))
        h_BTHV = seq.recurrent("cell", "slstm", streams, self.recurrent_weight, bias)
        return head_norm(h_BTHV, self.head_norm_weight, None, self.config.norm_eps).flatten(-2).to(x_BTD.dtype)

    def state_spec(self) -> dict[str, StateSpec]:
        _, H, V, _ = self.gate_weight.shape
        tail = named("conv", conv_state(H * V, self.config.taps)) if self.config.taps else {}
        return tail | named("cell", recurrent_state("slstm", H, V))
