"""AdamW with Muon for some groups and noise on gradients, on whole parameters or on the flat parts that ZeRO gives an optimizer."""

import hashlib
import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.adamw import adamw

from llm.train import muon

NOISE_DECAY = 0.55
NOISE_BLOCK = 1 << 18


class SplitAdamW(torch.optim.Optimizer):
    """torch's fused AdamW; groups marked `orthogonal` are Muon's, whose state is `momentum_buffer`, as large as what a rank holds.

    Each group knows its parameters' `names` and `shapes`, which the flat part of a group does not tell. Gradients come clipped, and
    so Muon orthogonalises clipped ones. zero: ZeRO's stage. momentum: Muon's. precision: in which it orthogonalises. noise: eta of
    gradient noise, or None. settings: `lr`, `betas`, `eps` and `weight_decay`, for groups that name none.
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
        super().__init__(groups, settings)
        self.zero, self.momentum, self.precision, self.noise, self.seed = zero, momentum, precision, noise, seed

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            # at stage 0 tensors are parameters, above a group has one flat tensor
            held = [(k, tensor) for k, tensor in enumerate(group["params"]) if tensor.grad is not None]
            plans = {k: self.plan(group, k, tensor) for k, tensor in held if group["orthogonal"] or self.noise is not None}
            if self.noise is not None:
                assert group["at_step"] > 0, "steps are counted from 1"
                std = math.sqrt(self.noise / (1 + group["at_step"]) ** NOISE_DECAY)
                for k, tensor in held:
                    add_noise(tensor.grad, plans[k], self.part(group["names"], k), std, f"{self.seed} {group['at_step']}")
            if group["orthogonal"]:
                for k, tensor in held:
                    self.orthogonal_step(tensor, group, plans[k])
            else:
                self.adamw_step([tensor for _, tensor in held], group)

    def part(self, of_parameters: list[Any], k: int) -> list[Any]:
        """Of a list with an item per parameter of a group: those of its k-th tensor."""
        return of_parameters if self.zero else of_parameters[k : k + 1]

    def plan(self, group: dict[str, Any], k: int, tensor: Tensor) -> muon.Plan:
        rank, ranks = (dist.get_rank(), dist.get_world_size()) if self.zero else (0, 1)
        return muon.plan(tuple(self.part(group["shapes"], k)), self.zero, rank, ranks, tensor.numel())

    def adamw_step(self, tensors: list[Tensor], group: dict[str, Any]) -> None:
        for tensor in tensors:
            if not self.state[tensor]:
                zeros = {name: torch.zeros_like(tensor) for name in ("exp_avg", "exp_avg_sq")}
                self.state[tensor] = {"step": torch.zeros((), dtype=torch.float32, device=tensor.device), **zeros}
        first, second, steps = ([self.state[tensor][name] for tensor in tensors] for name in ("exp_avg", "exp_avg_sq", "step"))
        adamw(
            tensors,
            [tensor.grad for tensor in tensors if tensor.grad is not None],
            first,
            second,
            [],
            steps,
            fused=group["fused"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )

    def orthogonal_step(self, tensor: Tensor, group: dict[str, Any], plan: muon.Plan) -> None:
        state, gradient = self.state[tensor], tensor.grad
        assert gradient is not None
        if not state:
            state["momentum_buffer"] = torch.zeros_like(tensor)
        held = state["momentum_buffer"].lerp_(gradient, 1 - self.momentum)
        update = muon.orthogonalised(gradient.lerp(held, self.momentum).to(self.precision).view(-1), plan)
        tensor.mul_(1 - group["lr"] * group["weight_decay"])
        for piece in plan.mine:
            size = muon.RMS * max(plan.shapes[piece.parameter]) ** 0.5
            tensor.view(-1)[piece.held].add_(update[piece.held], alpha=-group["lr"] * size)


def add_noise(gradient: Tensor, plan: muon.Plan, names: list[str], std: float, key: str) -> None:
    """Gaussian noise that depends on (key, parameter, position) alone: blocks of positions have a generator each."""
    for piece in plan.mine:
        for first in range(piece.start // NOISE_BLOCK * NOISE_BLOCK, piece.stop, NOISE_BLOCK):
            digest = hashlib.sha256(f"{key} {names[piece.parameter]} {first}".encode()).digest()
            generator = torch.Generator(gradient.device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)
            length = min(NOISE_BLOCK, math.prod(plan.shapes[piece.parameter]) - first)
            noise = torch.randn(length, generator=generator, device=gradient.device)
            start, stop = max(piece.start, first), min(piece.stop, first + length)
            at = piece.offset + start - piece.start
            gradient.view(-1)[at : at + stop - start].add_(noise[start - first : stop - first], alpha=std)
