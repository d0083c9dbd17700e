"""Two small mixers that cross time with what of the op families no mixer of the table uses yet."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from llm.cost import Cost, projection, scan, scan_state_bytes, vector
from llm.mixers import Mixer
from llm.sequence import Seq, elementwise_state, named, scan_state
from llm.state import StateSpec, accumulator


@dataclass(frozen=True)
class GatedConfig:
    """minGRU (arXiv:2410.01201 sec. 3.1): h = (1 - z) h + z x W, z = sigmoid(x W_z)."""

    kind: str = "gated"

    def check(self, where: str, width: int) -> None: ...

    def cost(self, width: int, context: int, bytes_per_value: int) -> Cost:
        return projection(width, 2 * width) + Cost(state_bytes=4 * width)


class Gated(Mixer):
    def __init__(self, config: GatedConfig, width: int):
        super().__init__()
        self.config, self.width = config, width
        self.in_proj = nn.Linear(width, 2 * width, bias=False)

    def mix(self, x_BTD: Tensor, seq: Seq) -> Tensor:
        z, new = self.in_proj(x_BTD).chunk(2, -1)
        z = z.sigmoid()
        return seq.elementwise("h", z * new, 1 - z)

    def state_spec(self) -> dict[str, StateSpec]:
        return named("h", elementwise_state(self.width))


@dataclass(frozen=True)
class SpectralConfig:
    """A diagonal state space of complex states with steps that depend on the token."""

    kind: str = "spectral"
    states: int = 3

    def check(self, where: str, width: int) -> None: ...

    def cost(self, width: int, context: int, bytes_per_value: int) -> Cost:
        parameters = projection(width, width) + vector(2 * width * self.states) + vector(4 * self.states)
        # the counter of FLOPs takes a complex product for one
        return parameters + scan(width, self.states) + scan_state_bytes(2 * width, self.states)


class Spectral(Mixer):
    roles: ClassVar[dict[str, str]] = {
        "log_rate": "log rate per state",
        "angle": "embedding",
        "input": "embedding",
        "output": "embedding",
    }

    def __init__(self, config: SpectralConfig, width: int):
        super().__init__()
        self.config, self.width, N = config, width, config.states
        self.step_proj = nn.Linear(width, width, bias=False)
        self.log_rate = nn.Parameter(torch.empty(width, N))
        self.angle = nn.Parameter(torch.empty(width, N))
        self.input = nn.Parameter(torch.empty(N, 2))
        self.output = nn.Parameter(torch.empty(N, 2))

    def mix(self, x_BTD: Tensor, seq: Seq) -> Tensor:
        exact = accumulator(x_BTD.dtype)
        step = nn.functional.softplus(self.step_proj(x_BTD).to(exact))
        A = torch.complex(-self.log_rate.to(exact).exp(), self.angle.to(exact))
        B, C = (torch.view_as_complex(w.to(exact) + 1).expand(*x_BTD.shape[:2], 1, -1) for w in (self.input, self.output))
        return seq.scan("h", x_BTD, step, A, B, C)

    def state_spec(self) -> dict[str, StateSpec]:
        return named("h", scan_state(self.width, self.config.states, torch.complex64))


FAMILIES: dict[str, Any] = {"gated": (GatedConfig, Gated), "spectral": (SpectralConfig, Spectral)}
