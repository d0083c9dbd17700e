"""Diagonal recurrences by CUDA and Triton kernels. Definitions: `naive.py`.

mamba-ssm's selective scan starts from no state, has no gradient of the final one and knows no documents. All three are tokens to it
(with u and dt of 0 unless said, and their outputs dropped):
- before the row, one per state n with B = e_n, a step so small that nothing fades, and u = h_n / step: the incoming state;
- before a document, one whose step is so large that exp(dt A) is 0: the state ends there, exactly;
- behind the row, one per state n with C = e_n: the final state, as outputs with a gradient.
"""

from typing import Any

import torch
from torch import Tensor

from llm.docs import Stretch
from llm.ops import kernels
from llm.ops.kernels import HALF, Facts, Route, extent
from llm.ops.layouts import over_documents, slots_of

SELECTIVE_SCAN = "mamba_ssm.ops.selective_scan_interface:selective_scan_fn"
HGRN = "fla.ops.hgrn:fused_recurrent_hgrn"
# exp(-1e-12 |A|) is 1 in float32 for every |A| below 5e4; exp(-1e30 |A|) is 0 for every |A| above 2e-28
NO_TIME, FOR_EVER = 1e-12, 1e30
# tokens between two states that selective_scan_fn keeps
KEPT = 2048


def scan_facts(u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor) -> dict[str, Any]:
    kept = u.shape[0] * u.shape[2] * -(-u.shape[1] // KEPT) * A.shape[1] * 2
    is_complex = any(x.is_complex() for x in (A, B, C, state))
    return {"sizes": {"N": A.shape[1]}, "extent": max(extent(u), kept), "special": {"complex": is_complex}}


def elementwise_facts(x: Tensor, decay: Tensor, state: Tensor) -> dict[str, Any]:
    return {"sizes": {"D": x.shape[2]}, "special": {"complex": any(s.is_complex() for s in (x, decay, state))}}


def selective_scan(u, dt, A, B, C, state, *, at: Stretch) -> tuple[Tensor, Tensor]:
    """All in float32: the kernel takes one dtype for u, dt, B and C, and dt makes the decays."""
    u_BTD, dt_BTD, B, C, state = (x.float() for x in (u, dt, B, C, state))
    batch, N = len(u), A.shape[1]
    before = 0 if at.fresh else N
    slots = slots_of(at, batch, u.device, before, behind=N)
    u_BTD, dt_BTD, B, C = map(slots.placed, (u_BTD, dt_BTD, B, C))
    if at.documents is not None:
        ends_BT = (at.documents.starts_BT.float() * FOR_EVER)[..., None].expand_as(dt)
        dt_BTD = dt_BTD.scatter_add(1, (slots.slot_BT - 1).clamp(min=0)[..., None].expand_as(dt), ends_BT)
    each = torch.eye(N, device=u.device)[:, None].expand(batch, N, B.shape[2], N)
    C = torch.cat([C[:, :-N], each], 1)
    if before:
        u_BTD = torch.cat([state.transpose(1, 2) / NO_TIME, u_BTD[:, N:]], 1)
        dt_BTD = torch.cat([torch.full_like(dt_BTD[:, :N], NO_TIME), dt_BTD[:, N:]], 1)
        B = torch.cat([each, B[:, N:]], 1)
    per_channel = (x.transpose(1, 2).contiguous() for x in (u_BTD, dt_BTD))
    per_group = (x.permute(0, 2, 3, 1).contiguous() for x in (B, C))
    y_BTD = kernels.entry(SELECTIVE_SCAN)(*per_channel, A.float(), *per_group).transpose(1, 2)
    return slots.taken(y_BTD).to(u.dtype), y_BTD[:, -N:].transpose(1, 2)


def hgrn(x, decay, state, *, at: Stretch) -> tuple[Tensor, Tensor]:
    def run(x, log_decay, cu_seqlens_cpu=None, **rest):
        return kernels.entry(HGRN)(x, log_decay, output_final_state=True, **rest)

    tiny = torch.finfo(torch.float32).tiny
    h, final = over_documents(run, (x.float(), decay.float().clamp(min=tiny).log()), state.float(), at)
    return h.to(x.dtype), final


def _real(facts: Facts) -> str | None:
    return "runs on real numbers, not on complex ones" if facts.special.get("complex") else None


SCAN = (
    Route(
        name="mamba_ssm",
        package="mamba-ssm",
        entry=SELECTIVE_SCAN,
        extra="mamba-ssm",
        run=selective_scan,
        dtypes=(*HALF, torch.float32),
        widths={"N": (1, 256, 1)},
        int32=True,
        exact_float32=True,
        more=_real,
    ),
)
ELEMENTWISE = (
    Route(
        name="fla",
        package="flash-linear-attention",
        entry=HGRN,
        extra="fla",
        run=hgrn,
        dtypes=(*HALF, torch.float32),
        exact_float32=True,
        more=_real,
        declines=lambda facts: "takes the logarithm of decays, which must all be above 0; only who makes them knows",
    ),
)
