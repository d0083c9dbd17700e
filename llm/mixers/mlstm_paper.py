"""mLSTM in the block of the first xLSTM paper (Beck et al., arXiv:2405.04517, fig. 11; layout of the published `xlstm` package).

    u, z = x W_up         c = silu(conv(u))         q, k = c W_q, c W_k       v = u W_v       (block-diagonal, small blocks)
    i, f = [q, k, v] W + b        h = mLSTM(q, k, v, i, f)        out = ((LayerNorm_head(h) + skip * c) * silu(z)) W_down

The package keeps the norm's weight less 1, which is the same function.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from omegaconf import MISSING
from torch import Tensor, nn
from torch.nn import functional as F

from llm.cost import Cost, block_projection, conv, conv_tail, mlstm, mlstm_state_bytes, projection, vector
from llm.errors import ConfigError
from llm.mixers.mixer import Mixer
from llm.ops.blockwise import blockwise
from llm.ops.norm import head_norm
from llm.ops.swiglu import swiglu
from llm.sequence import Seq, conv_state, mlstm_state, named
from llm.state import StateSpec, accumulator


@dataclass(frozen=True)
class MLSTMPaperConfig:
    """expand: inner width over the model's. qkv_block: channels of each block of the query, key and value maps."""

    kind: str = "mlstm_paper"
    heads: int = MISSING
    expand: int = 2
    qkv_block: int = 4
    taps: int = 4
    norm_eps: float = 1e-5

    def check(self, where: str, width: int) -> None:
        """Raises ConfigError."""
        inner = self.expand * width
        for name in ("heads", "qkv_block"):
            if getattr(self, name) < 1 or inner % getattr(self, name):
                raise ConfigError(
                    f"{where}.{name} ({getattr(self, name)}) must divide {where}.expand x model.width ({inner}); use a divisor"
                )
        if self.taps < 1:
            raise ConfigError(f"{where}.taps ({self.taps}) must be at least 1")

    def cost(self, width: int, context: int, bytes_per_value: int) -> Cost:
        inner, H = self.expand * width, self.heads
        maps = projection(width, 2 * inner) + projection(inner, width) + projection(3 * inner, 2 * H)
        for _ in range(3):
            maps += block_projection(inner, self.qkv_block)
        convolution = conv(inner, self.taps) + vector(inner) + conv_tail(inner, self.taps, bytes_per_value)
        return (
            maps
            + convolution
            + vector(2 * inner + 2 * H)
            + mlstm(H, inner // H, inner // H)
            + mlstm_state_bytes(H, inner // H, inner // H)
        )


class MLSTMPaper(Mixer):
    roles: ClassVar[dict[str, str]] = {
        "q_weight": "matrix",
        "k_weight": "matrix",
        "v_weight": "matrix",
        "gate_weight": "gate matrix",
        "input_bias": "small bias",
        "forget_bias": "forget gate bias",
        "head_norm_weight": "norm",
        "skip": "skip",
    }

    def __init__(self, config: MLSTMPaperConfig, width: int):
        super().__init__()
        self.config = config
        self.inner = inner = config.expand * width
        H, blocks = config.heads, (inner // config.qkv_block, config.qkv_block, config.qkv_block)
        self.up_proj = nn.Linear(width, 2 * inner, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(inner, config.taps))
        self.conv_bias = nn.Parameter(torch.empty(inner))
        self.q_weight = nn.Parameter(torch.empty(blocks))
        self.k_weight = nn.Parameter(torch.empty(blocks))
        self.v_weight = nn.Parameter(torch.empty(blocks))
        self.gate_weight = nn.Parameter(torch.empty(2 * H, 3 * inner))
        self.input_bias = nn.Parameter(torch.empty(H))
        self.forget_bias = nn.Parameter(torch.empty(H))
        self.head_norm_weight = nn.Parameter(torch.empty(H, inner // H))
        self.skip = nn.Parameter(torch.empty(inner))
        self.down_proj = nn.Linear(inner, width, bias=False)

    def mix(self, x_BTD: Tensor, seq: Seq) -> Tensor:
        u, z = self.up_proj(x_BTD).chunk(2, -1)
        c = F.silu(seq.conv("conv", u, self.conv_weight, self.conv_bias))
        q, k, v = (blockwise(x, w) for x, w in ((c, self.q_weight), (c, self.k_weight), (u, self.v_weight)))
        exact = accumulator(u.dtype)
        log_input, forget = F.linear(torch.cat([q, k, v], -1), self.gate_weight).to(exact).chunk(2, -1)
        q, k, v = (x.unflatten(-1, (self.config.heads, -1)) for x in (q, k, v))
        gates = log_input + self.input_bias.to(exact), F.logsigmoid(forget + self.forget_bias.to(exact))
        h_BTHV = seq.mlstm("mlstm", q, k, v, *gates, scale=q.shape[-1] ** -0.5)
        normed = head_norm(h_BTHV, self.head_norm_weight, None, self.config.norm_eps).flatten(-2)
        return self.down_proj(swiglu(z, normed + self.skip.to(c.dtype) * c))

    def state_spec(self) -> dict[str, StateSpec]:
        channels = self.inner // self.config.heads
        cell = mlstm_state(self.config.heads, channels, channels)
        return named("conv", conv_state(self.inner, self.config.taps)) | named("mlstm", cell)
