"""Rotary position embedding (RoFormer, arXiv:2104.09864 eq. 34), in the half-split layout of Llama; scaled for longer contexts."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from omegaconf import MISSING
from torch import Tensor

from llm.errors import ConfigError
from llm.ops.routes import kernel_of
from llm.state import accumulator

# Rotations in `context` above which a channel keeps its frequency, where `fast` is not given.
FAST = {"linear": 0.0, "llama3": 4.0, "yarn": 32.0}


@dataclass(frozen=True)
class RopeScaling:
    """Frequencies for contexts `factor` times as long as the model's first ones.

    kind: `linear` divides all frequencies by factor (position interpolation, arXiv:2306.15595). `llama3` and `yarn`
    (arXiv:2309.00071 sec. 3.2) divide those of channels that turn less than `slow` times within `context` tokens, leave those that
    turn more than `fast` times, and go from one to the other in between: along the number of turns (Llama 3.1's published code), or
    along the channel's index.

    context: tokens of the first training. fast: null is 4 (llama3) or 32 (yarn). scale: factor of yarn's queries and of its keys;
    null is 0.1 ln(factor) + 1 (eq. 22).
    """

    kind: Literal["linear", "llama3", "yarn"] = MISSING
    factor: float = MISSING
    context: int | None = None
    slow: float = 1.0
    fast: float | None = None
    scale: float | None = None

    def check(self, where: str) -> None:
        """Raises ConfigError."""
        if not 1 <= self.factor < math.inf:
            raise ConfigError(f"{where}.factor ({self.factor}) stretches the context and must be at least 1; 4 is 4 times as long")
        if (self.context is None) != (self.kind == "linear"):
            raise ConfigError(
                f"{where}.context ({self.context}) is how many tokens the model was first trained on, which llama3 and yarn need "
                "and linear does not; set it, or remove it"
            )
        if self.context is not None and self.context < 1:
            raise ConfigError(f"{where}.context ({self.context}) must be at least 1")
        if self.kind == "linear" and (self.slow, self.fast) != (1.0, None):
            raise ConfigError(f"{where}.slow and .fast have no effect with {where}.kind (linear); remove them")
        if self.kind != "linear" and not 0 < self.slow < self.turns:
            raise ConfigError(f"{where}.slow ({self.slow}) must be above 0 and below {where}.fast ({self.turns}); as 1 and 4 are")
        if self.scale is not None and (self.kind != "yarn" or self.scale <= 0):
            raise ConfigError(f"{where}.scale ({self.scale}) must be positive and is yarn's alone; remove it")

    @property
    def turns(self) -> float:
        """`fast`, given or not."""
        return FAST[self.kind] if self.fast is None else self.fast

    @property
    def amplitude(self) -> float:
        """`scale`, given or not."""
        usual = 0.1 * math.log(self.factor) + 1 if self.kind == "yarn" else 1.0
        return usual if self.scale is None else self.scale

    def scaled(self, frequency: Tensor, theta: float) -> Tensor:
        """Of frequencies theta^(-2i / K), in radians per token."""
        if self.kind == "linear" or self.context is None:
            return frequency / self.factor
        if self.kind == "llama3":
            turns = self.context * frequency / (2 * math.pi)
            kept = (turns - self.slow) / (self.turns - self.slow)
        else:
            i, half = torch.arange(len(frequency), device=frequency.device, dtype=frequency.dtype), len(frequency)
            # the channel that turns n times within the context; published code rounds outwards, the paper does not
            first, last = (half * math.log(self.context / (2 * math.pi * n)) / math.log(theta) for n in (self.turns, self.slow))
            low, high = max(math.floor(first), 0), min(math.ceil(last), 2 * half - 1)
            kept = 1 - (i - low) / (high - low or 0.001)
        kept = kept.clamp(0, 1)
        return kept * frequency + (1 - kept) * frequency / self.factor


def rotary(
    x_BTHK: Tensor, position_BT: Tensor, theta: float, channels: int | None = None, scaling: RopeScaling | None = None
) -> Tensor:
    """Rotate channel i with channel i + K/2 by the angle position * theta^(-2i / K), or a scaled one. K must be even.

    channels: K, where only the first K channels turn and the others stay (GPT-NeoX); all of them unless given.
    """
    K = x_BTHK.shape[-1] if channels is None else channels
    return turned(x_BTHK, *angles(position_BT, K, theta, scaling, accumulator(x_BTHK.dtype)))


def turned(x_BTHK: Tensor, cos_BTk: Tensor, sin_BTk: Tensor) -> Tensor:
    """By a table of `angles` for the first channels, which all heads share: a small part of the bytes."""
    if kernel := kernel_of("rotary", None, x_BTHK, cos_BTk, sin_BTk):
        return kernel(x_BTHK, cos_BTk, sin_BTk, at=None)
    x, half = x_BTHK.to(cos_BTk.dtype), cos_BTk.shape[-1]
    first, second, rest = x.split([half, half, x.shape[-1] - 2 * half], -1)
    cos, sin = cos_BTk[:, :, None], sin_BTk[:, :, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1).to(x_BTHK.dtype)


def angles(position_BT: Tensor, K: int, theta: float, scaling: RopeScaling | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[B, T, K / 2]` of what K channels turn by."""
    frequency = theta ** (-torch.arange(0, K, 2, device=position_BT.device, dtype=dtype) / K)
    if scaling is not None:
        frequency = scaling.scaled(frequency, theta)
    angle = position_BT[..., None].to(dtype) * frequency
    if scaling is None or scaling.amplitude == 1:
        return angle.cos(), angle.sin()
    return angle.cos() * scaling.amplitude, angle.sin() * scaling.amplitude
