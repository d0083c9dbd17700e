"""SwiGLU channel layer (Shazeer, arXiv:2002.05202): down(silu(gate x) * up x)."""

from dataclasses import dataclass

from torch import Tensor, nn

from llm.cost import Cost, projection
from llm.errors import ConfigError
from llm.ops.swiglu import swiglu


@dataclass(frozen=True)
class SwiGLUConfig:
    """hidden: None is 8/3 of the width, rounded up to a multiple of 64."""

    kind: str = "swiglu"
    hidden: int | None = None

    def size(self, width: int) -> int:
        return self.hidden or -(-8 * width // (3 * 64)) * 64

    def check(self, where: str, width: int) -> None:
        """Raises ConfigError."""
        if self.hidden is not None and self.hidden < 1:
            raise ConfigError(f"{where}.hidden ({self.hidden}) must be at least 1; null picks 8/3 of the width")

    def cost(self, width: int) -> Cost:
        return projection(width, 2 * self.size(width)) + projection(self.size(width), width)


class SwiGLU(nn.Module):
    def __init__(self, config: SwiGLUConfig, width: int):
        super().__init__()
        hidden = config.size(width)
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down_proj(swiglu(self.gate_proj(x_BTD), self.up_proj(x_BTD)))
