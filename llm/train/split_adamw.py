"""AdamW with Muon for some groups and noise on gradients, on whole parameters or on the flat parts that ZeRO gives an optimizer."""

import hashlib
import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from llm.train import muon
from llm.train.layout import Piece

NOISE_DECAY = 0.55
NOISE_BLOCK = 1 << 18


class SplitAdamW(torch.optim.AdamW):
    """AdamW; groups marked `orthogonal` are Muon's, whose state is `momentum_buffer`, as large as what the rank holds.

    Each group knows its parameters' `names` and `shapes`, which the flat part of a group does not tell. Gradients come clipped, and
    so Muon orthogonalises clipped ones. zero: ZeRO's stage. momentum: Muon's. precision: in which it orthogonalises. noise: eta of
    gradient noise, or None.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        zero: int = 0,
        momentum: float = 0.95,
        precision: torch.dtype = torch.bfloat16,
        noise: float | None = None,
        seed: int = 0,
        **settings: Any,
    ):
        super().__init__(groups, **settings)
        self.zero, self.momentum, self.precision, self.noise, self.seed = zero, momentum, precision, noise, seed

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for k, tensor in enumerate(group["params"]):
                if tensor.grad is None:
                    continue
                # at stage 0 tensors are parameters, above a group has one flat tensor
                part = slice(None) if self.zero else slice(k, k + 1)
                names, shapes = group["names"][part], tuple(group["shapes"][part])
                rank, ranks = (dist.get_rank(), dist.get_world_size()) if self.zero else (0, 1)
                plan = muon.plan(shapes, self.zero, rank, ranks, tensor.numel())
                if self.noise is not None:
                    assert group["at_step"] > 0, "steps are counted from 1"
                    std = math.sqrt(self.noise / (1 + group["at_step"]) ** NOISE_DECAY)
                    add_noise(tensor.grad, plan.mine, names, shapes, std, f"{self.seed} {group['at_step']}")
                if group["orthogonal"]:
                    self.orthogonal_step(tensor, group, shapes, plan)
                    # AdamW passes over what has no gradient
                    tensor.grad = None
        return super().step(closure)

    def orthogonal_step(self, tensor: Tensor, group: dict[str, Any], shapes: tuple[muon.Shape, ...], plan: muon.Plan) -> None:
        state, gradient = self.state[tensor], tensor.grad
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(tensor)
        held = state["momentum_buffer"].lerp_(gradient, 1 - self.momentum)
        update = muon.orthogonalised(gradient.lerp(held, self.momentum).to(self.precision).view(-1), shapes, plan)
        tensor.mul_(1 - group["lr"] * group["weight_decay"])
        for piece in plan.mine:
            size = muon.RMS * max(shapes[piece.parameter]) ** 0.5
            tensor.view(-1)[piece.held].add_(update[piece.held], alpha=-group["lr"] * size)


def add_noise(gradient: Tensor, held: list[Piece], names: list[str], shapes: tuple[muon.Shape, ...], std: float, key: str) -> None:
    """Gaussian noise that depends on (key, parameter, position) alone: blocks of positions have a generator each."""
    for piece in held:
        for first in range(piece.start // NOISE_BLOCK * NOISE_BLOCK, piece.stop, NOISE_BLOCK):
            digest = hashlib.sha256(f"{key} {names[piece.parameter]} {first}".encode()).digest()
            generator = torch.Generator(gradient.device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            length = min(NOISE_BLOCK, math.prod(shapes[piece.parameter]) - first)
            noise = torch.randn(length, generator=generator, device=gradient.device)
            start, stop = max(piece.start, first), min(piece.stop, first + length)
            at = piece.offset + start - piece.start
            gradient.view(-1)[at : at + stop - start].add_(noise[start - first : stop - first], alpha=std)
