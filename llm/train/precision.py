"""The precision of a run: chosen once from the device, then written into the config, so that it can be said, saved and resumed."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import torch
from torch import nn

from llm.init import cast_model, pinned
from llm.model import Decoder
from llm.train.config import RunConfig

AUTOCAST_STAGE = 3
# values of a parameter up to which every rank keeps it whole under stage 3, from the first step on, as it is and not in bf16
KEPT_WHOLE = 100_000


def resolved(config: RunConfig, device: torch.device) -> tuple[RunConfig, str]:
    """The config with `precision` decided, and the sentence that says why."""
    precision = config.train.precision
    choice: Literal["fp32", "bf16"]
    if precision != "auto":
        return config, f"precision {precision}: set by train.precision"
    if not computes_in_bf16(device):
        choice, why = "fp32", f"this {device.type} has no native bf16"
    elif config.parallel.zero == 0:
        choice, why = "fp32", "ZeRO stage 0 keeps no float32 master weights (parallel.zero=1 trains in bf16)"
    else:
        choice, why = "bf16", f"this {device.type} computes in bf16"
    return replace(config, train=replace(config.train, precision=choice)), f"precision {choice}: {why}"


def computes_in_bf16(device: torch.device) -> bool:
    """Whether bf16 is an instruction of the device and not emulated."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    flags = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, flag, lambda: False)() for flag in flags)


def casts_model(config: RunConfig) -> bool:
    """Whether weights live in bf16: bf16 at stages 1 and 2. Stage 3 keeps them fp32 and autocasts."""
    return config.train.precision == "bf16" and config.parallel.zero < AUTOCAST_STAGE


def gathered_in_bf16(model: Decoder) -> Iterator[nn.Parameter]:
    """Of bf16 at stage 3."""
    kept = pinned(model)
    yield from (p for name, p in model.named_parameters() if name not in kept and p.numel() > KEPT_WHOLE)


def prepare(model: Decoder, config: RunConfig) -> None:
    """For bf16 at stages 1 and 2 parameters become bf16, at stage 3 they are gathered and reduced in it; except those whose role is
    kept in float32, and small ones at stage 3: gathered in bf16 at the first step, they would be float32 at the next.
    """
    if casts_model(config):
        cast_model(model)
    elif config.train.precision == "bf16":
        for parameter in gathered_in_bf16(model):
            # what DeepSpeed's `lower_precision_safe_modules` sets on parameters of whole classes of modules
            parameter.comm_dtype = torch.bfloat16  # type: ignore[attr-defined]
