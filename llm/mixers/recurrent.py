"""Classical recurrent layers, LSTM and GRU, with a block-diagonal recurrent matrix: heads do not see one another's outputs.

    x -> preactivations x W_in + b of the gates -> cell (llm/ops/recurrent/cells.py) with h R + b' -> h W_out

With one head and W_out = 1 they are `torch.nn.LSTM` and `torch.nn.GRU`.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from omegaconf import MISSING
from torch import Tensor, nn

from llm.cost import Cost, projection, recurrent, recurrent_state_bytes, vector
from llm.errors import ConfigError
from llm.mixers.mixer import Mixer
from llm.ops.recurrent.cells import CELLS
from llm.sequence import Seq, named, recurrent_state
from llm.state import StateSpec, accumulator


@dataclass(frozen=True)
class LSTMConfig:
    kind: str = "lstm"
    heads: int = MISSING

    def check(self, where: str, width: int) -> None:
        """Raises ConfigError."""
        if self.heads < 1 or width % self.heads:
            raise ConfigError(f"{where}.heads ({self.heads}) must divide model.width ({width}); use a divisor")

    def cost(self, width: int, context: int, bytes_per_value: int) -> Cost:
        gates, states = CELLS[self.kind].gates, len(CELLS[self.kind].states)
        maps = projection(width, gates * width) + projection(width, width) + vector(2 * gates * width)
        return maps + recurrent(self.heads, width // self.heads, gates) + recurrent_state_bytes(width, states)


@dataclass(frozen=True)
class GRUConfig(LSTMConfig):
    kind: str = "gru"


class Recurrent(Mixer):
    roles: ClassVar[dict[str, str]] = {"recurrent_weight": "matrix", "input_bias": "bias", "recurrent_bias": "bias"}

    def __init__(self, config: LSTMConfig, width: int):
        super().__init__()
        self.config = config
        H, M, V = config.heads, CELLS[config.kind].gates, width // config.heads
        self.in_proj = nn.Linear(width, H * M * V, bias=False)
        self.input_bias = nn.Parameter(torch.empty(H, M, V))
        self.recurrent_weight = nn.Parameter(torch.empty(H, M, V, V))
        self.recurrent_bias = nn.Parameter(torch.empty(H, M, V))
        self.out_proj = nn.Linear(width, width, bias=False)

    def mix(self, x_BTD: Tensor, seq: Seq) -> Tensor:
        gates = self.in_proj(x_BTD).unflatten(-1, self.input_bias.shape)
        gates = gates + self.input_bias.to(accumulator(gates.dtype))
        h_BTHV = seq.recurrent("cell", self.config.kind, gates, self.recurrent_weight, self.recurrent_bias)
        return self.out_proj(h_BTHV.flatten(-2).to(x_BTD.dtype))

    def state_spec(self) -> dict[str, StateSpec]:
        H, _, V = self.input_bias.shape
        return named("cell", recurrent_state(self.config.kind, H, V))
