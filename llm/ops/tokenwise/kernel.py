"""Ops of each token alone by Triton kernels, which win by bytes: they read a stream once and write it once, in its own dtype.

Definitions: `llm/ops/{norm,rotary,swiglu,cross_entropy}.py`. Their PyTorch forms go over float32 copies several times
(docs/kernels.md has the count). Inside `torch.compile` they stand aside: there PyTorch fuses its own forms.
"""

from typing import Any

import torch
from torch import Tensor

from llm.ops import kernels
from llm.ops.kernels import HALF, Facts, Route, extent

RMS_NORM = "fla.modules.norm.layernorm:rms_norm"
GROUP_NORM = "fla.modules.norm.layernorm:group_norm"
SWIGLU = "fla.modules.activations:swiglu"
LOSS = "fla.modules.fused_cross_entropy.ops:cross_entropy_fwd"
LOSS_GRADIENT = "fla.modules.fused_cross_entropy.ops:cross_entropy_bwd"
ROTARY = "flash_attn.layers.rotary:apply_rotary_emb"
# a launch's second dimension counts blocks of tokens: of 8, or of 4 where more than 128 channels turn
BLOCKS = (1 << 16) - 1


def norm_facts(x: Tensor, *_: Any, **settings: Any) -> dict[str, Any]:
    return {"sizes": {"D": x.shape[-1]}}


def swiglu_facts(gate: Tensor, x: Tensor) -> dict[str, Any]:
    return {"special": {"dtypes": (gate.dtype, x.dtype)}}


def loss_facts(logits_NZ: Tensor, *_: Any, **settings: Any) -> dict[str, Any]:
    return {"sizes": {"Z": logits_NZ.shape[1]}}


def rotary_facts(x_BTHK: Tensor, cos_BTk: Tensor, *_: Any) -> dict[str, Any]:
    blocks = -(-x_BTHK.shape[0] * x_BTHK.shape[1] // (8 if cos_BTk.shape[-1] <= 64 else 4))
    return {"sizes": {"K": x_BTHK.shape[-1]}, "extent": extent(x_BTHK), "special": {"blocks": blocks}}


def rms_norm(x: Tensor, weight: Tensor | None, *, eps: float, at: None) -> Tensor:
    return kernels.entry(RMS_NORM)(x, weight, None, eps=eps)


def head_norm(x_BTHV: Tensor, weight_HV: Tensor, bias_HV: Tensor | None, *, eps: float, at: None) -> Tensor:
    flat = x_BTHV.flatten(-2), weight_HV.flatten(), None if bias_HV is None else bias_HV.flatten()
    return kernels.entry(GROUP_NORM)(*flat, eps=eps, num_groups=len(weight_HV)).view_as(x_BTHV)


def swiglu(gate: Tensor, x: Tensor, *, at: None) -> Tensor:
    return kernels.entry(SWIGLU)(gate, x)


def loss(
    logits_NZ: Tensor, labels_N: Tensor, *, ignored: int, z_loss: float, cap: float | None, gradient: bool, at: None
) -> tuple[Tensor, Tensor, Tensor | None]:
    settings = {"logit_softcapping": cap, "ignore_index": ignored}
    nats_N, _, log_total_N, *_ = kernels.entry(LOSS)(logits_NZ, labels_N, **settings)
    if not gradient:
        return nats_N, log_total_N, None
    each = torch.ones((), device=logits_NZ.device).expand(len(logits_NZ))
    settings |= {"lse_square_scale": z_loss, "inplace_backward": True}
    return nats_N, log_total_N, kernels.entry(LOSS_GRADIENT)(logits_NZ, labels_N, log_total_N, each, **settings)


def rotary(x_BTHK: Tensor, cos_BTk: Tensor, sin_BTk: Tensor, *, at: None) -> Tensor:
    """The batch as one row whose every token has a line of the table: documents and offsets need no telling.

    A table of one row is every row's.
    """
    table = (x.expand(*x_BTHK.shape[:2], -1).flatten(0, 1) for x in (cos_BTk, sin_BTk))
    return kernels.entry(ROTARY)(x_BTHK.flatten(0, 1)[None], *table).view_as(x_BTHK)


def _one_dtype(facts: Facts) -> str | None:
    names = [kernels.NAMES[dtype] for dtype in dict.fromkeys(facts.special.get("dtypes", ()))]
    return f"takes gate and stream in one dtype, not in {' and '.join(names)}" if len(names) > 1 else None


def _few_blocks(facts: Facts) -> str | None:
    blocks = facts.special.get("blocks", 0)
    return None if blocks <= BLOCKS else f"launches at most {BLOCKS:,} blocks of tokens, not {blocks:,}"


def _route(name: str, package: str, entry: str, run: Any, **more: Any) -> Route:
    extra = {"fla": "fla", "flash": "flash-attn"}[name]
    return Route(name, package, entry, extra, run, dtypes=(*HALF, torch.float32), exact_float32=True, **more)


FLA = "flash-linear-attention"
NORM = (_route("fla", FLA, RMS_NORM, rms_norm, widths={"D": (1, 16384, 1)}),)
HEAD_NORM = (_route("fla", FLA, GROUP_NORM, head_norm, widths={"D": (1, 16384, 1)}),)
SILU_GATE = (_route("fla", FLA, SWIGLU, swiglu, more=_one_dtype),)
CROSS_ENTROPY = (_route("fla", FLA, LOSS, loss),)
ROTATION = (_route("flash", "flash-attn", ROTARY, rotary, widths={"K": (2, 256, 2)}, int32=True, more=_few_blocks),)
