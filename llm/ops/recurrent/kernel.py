"""Nonlinear recurrences by flashrnn's fused Triton kernel (arXiv:2412.07752): a head's recurrent matrix stays on its processor.

Definition: `naive.py`. The kernel's states are those of `cells.py`, h first, and so are its gates. Its sLSTM takes the stabiliser m
for a constant: of the state that comes in, m enters c and n here; of the one that leaves, h alone has a gradient. Its tanh is made
of exp(-2 z), so z is held where tanh is 1 and exp finite. Its LSTM is float32 alone: it has no narrower sigmoid.

It knows no documents: before each goes a token whose gates are all shut. Its h is 0, and so is what the next keeps of c and n,
exactly: LSTM's forget and input gates are 0 there, sLSTM's m is so low that the next forget gate is.
"""

from typing import Any

import torch
from torch import Tensor

from llm.docs import Stretch
from llm.ops import kernels
from llm.ops.kernels import HALF, Facts, Route
from llm.ops.layouts import slots_of

FLASHRNN = "flashrnn.flashrnn.flashrnn:flashrnn"
DTYPES = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}
# how far z, the gate that goes through tanh, may be from 0; and a gate that is shut
MOST_Z, SHUT = 30.0, -1e4
# R of all gates is held on chip: at V = 128 the backward pass asks for 240 KiB of shared memory, and an H100 has 227
MOST = 64


def facts(x_BTHMV: Tensor, *_: Any, cell: str) -> dict[str, Any]:
    return {"sizes": {"V": x_BTHMV.shape[-1]}, "special": {"cell": cell}}


def flashrnn(x_BTHMV, R_HMVV, bias_HMV, state, *, cell: str, at: Stretch) -> tuple[Tensor, tuple[Tensor, ...]]:
    if cell == "slstm":
        h, c, n, m = state
        gauge = (m - m.detach()).exp()
        state = (h, c * gauge, n * gauge, m.detach())
    dtype = torch.float32 if cell == "lstm" else x_BTHMV.dtype
    slots = slots_of(at, len(x_BTHMV), x_BTHMV.device)
    x_BSHMV = slots.placed(x_BTHMV.to(dtype), SHUT) if at.documents is not None else x_BTHMV.to(dtype)
    i, f, z, o = x_BSHMV.unbind(3)
    states, _ = kernels.entry(FLASHRNN)(
        torch.stack([i, f, z.clamp(-MOST_Z, MOST_Z), o], 2),
        R_HMVV.transpose(0, 1).to(dtype),
        bias_HMV.transpose(0, 1).to(dtype),
        # [states, B, 1, H, V]
        torch.stack(state)[:, :, None].to(dtype),
        function=cell,
        backend="triton_fused",
        dtype=DTYPES[dtype],
    )
    last_B = slots.slot_BT[:, -1]
    h, *rest = states[:, torch.arange(len(last_B), device=last_B.device), last_B].float().unbind()
    if cell == "slstm":
        rest = [kernels.no_gradient(s, "recurrent", "flashrnn", "sLSTM's final c, n and m") for s in rest]
    return slots.taken(states[0]).to(x_BTHMV.dtype), (h, *rest)


def _held(facts: Facts) -> str | None:
    cell, V = facts.special.get("cell"), facts.sizes.get("V", 16)
    if cell not in (None, "lstm", "slstm"):
        return f"has no fused {cell}"
    return f"takes V of 16, 32, {MOST}, not V={V}" if V & (V - 1) else None


ROUTES = (
    Route(
        name="flashrnn",
        package="flashrnn",
        entry=FLASHRNN,
        extra="flashrnn",
        run=flashrnn,
        dtypes=(*HALF, torch.float32),
        widths={"V": (16, MOST, 16)},
        state_gradient=False,
        more=_held,
    ),
)
