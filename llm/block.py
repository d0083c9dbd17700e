"""One layer of the decoder: norm -> mixer -> add [-> norm -> channel layer -> add]."""

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING
from torch import Tensor, nn

from llm.docs import Docs
from llm.layers import LAYERS
from llm.mixers import MIXERS
from llm.ops.norm import RMSNorm
from llm.parallel import Ranks
from llm.state import State


@dataclass(frozen=True)
class LayerConfig:
    """mixer and ffn choose by `kind` from the tables `llm.mixers.MIXERS` and `llm.layers.LAYERS`; ffn may be left out."""

    mixer: Any = MISSING
    ffn: Any = MISSING


class Block(nn.Module):
    def __init__(self, config: LayerConfig, width: int, norm_eps: float):
        super().__init__()
        self.mixer_norm = RMSNorm(width, norm_eps)
        self.mixer = MIXERS[config.mixer.kind][1](config.mixer, width)
        channel = LAYERS[config.ffn.kind][1]
        self.ffn_norm = RMSNorm(width, norm_eps) if channel else None
        self.ffn = channel(config.ffn, width) if channel else None

    def forward(self, x_BTD: Tensor, state: State | None, docs: Docs | None, ranks: Ranks | None = None) -> tuple[Tensor, State]:
        mixed, state = self.mix(x_BTD, state, docs, ranks)
        return self.channel(x_BTD + mixed), state

    def mix(self, x_BTD: Tensor, state: State | None, docs: Docs | None, ranks: Ranks | None = None) -> tuple[Tensor, State]:
        """What the mixer adds to the stream, and its new state."""
        return self.mixer(self.mixer_norm(x_BTD), state, docs, ranks)

    def channel(self, x_BTD: Tensor) -> Tensor:
        """The stream behind the channel layer."""
        return x_BTD if self.ffn is None or self.ffn_norm is None else x_BTD + self.ffn(self.ffn_norm(x_BTD))
