"""Nonlinear recurrences by flashrnn's fused Triton kernel (arXiv:2412.07752): a head's recurrent matrix stays on its processor.

Definition: `naive.py`. The kernel's states are those of `cells.py`, h first, and so are its gates.
"""

from typing import Any

import torch
from torch import Tensor

from llm.docs import Stretch
from llm.ops import kernels
from llm.ops.kernels import HALF, NAMES, Facts, Route

FLASHRNN = "flashrnn.flashrnn.flashrnn:flashrnn"
DTYPES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}
# R of all gates is held on chip
MOST = {torch.bfloat16: 128, torch.float16: 128, torch.float32: 64}


def facts(x_BTHMV: Tensor, *_: Any, cell: str) -> dict[str, Any]:
    return {"sizes": {"V": x_BTHMV.shape[-1]}, "special": {"cell": cell}}


def flashrnn(x_BTHMV, R_HMVV, bias_HMV, state, *, cell: str, at: Stretch) -> tuple[Tensor, tuple[Tensor, ...]]:
    if at.documents is not None:
        state = tuple(torch.where(at.documents.starts_BT[:, 0, None, None], 0, s) for s in state)
    dtype = x_BTHMV.dtype
    states, final = kernels.entry(FLASHRNN)(
        x_BTHMV.transpose(2, 3),
        R_HMVV.transpose(0, 1).to(dtype),
        bias_HMV.transpose(0, 1).to(dtype),
        # [states, B, 1, H, V]
        torch.stack(state)[:, :, None].to(dtype),
        function=cell,
        backend="triton_fused",
        dtype=DTYPES[dtype],
    )
    return states[0], tuple(final[:, :, 0].float().unbind())


def _held(facts: Facts) -> str | None:
    cell, V = facts.special.get("cell"), facts.sizes.get("V", 16)
    if cell not in (None, "lstm", "slstm"):
        return f"has no fused {cell}"
    if V & (V - 1) or not 16 <= V <= MOST[facts.dtype]:
        return f"takes V of 16, 32, ... {MOST[facts.dtype]} in {NAMES[facts.dtype]}, not V={V}"
    return None


ROUTES = (
    Route(
        name="flashrnn",
        package="flashrnn",
        entry=FLASHRNN,
        extra="flashrnn",
        run=flashrnn,
        dtypes=(*HALF, torch.float32),
        documents=False,
        more=_held,
    ),
)
