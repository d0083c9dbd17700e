"""The table of channel layers: `kind` -> (config, module); a module of None leaves the channel layer out."""

from dataclasses import dataclass

from torch import nn

from llm.cost import Cost
from llm.layers.swiglu import SwiGLU, SwiGLUConfig


@dataclass(frozen=True)
class NoneConfig:
    """No channel layer: the block is norm -> mixer -> add."""

    kind: str = "none"

    def check(self, where: str, width: int) -> None:
        pass

    def cost(self, width: int) -> Cost:
        return Cost()


LAYERS: dict[str, tuple[type, type[nn.Module] | None]] = {
    "none": (NoneConfig, None),
    "swiglu": (SwiGLUConfig, SwiGLU),
}
