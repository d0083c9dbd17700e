"""Gated linear recurrences by the field's Triton kernels. Definitions: `naive.py`; what each kernel can: the tables below.

fla's simple GLA has one decay per head, fixed or at each token, its GLA one per key channel (arXiv:2312.06635); both start
documents at chunks of their own. mamba-ssm's chunk scan (arXiv:2405.21060) sums decays across the starts of documents, so that
one's rounding reaches the next: it runs rows of one document alone. mLSTM's normaliser is one more value channel of simple GLA, and
the stabiliser a gauge that enters decays and keys, so its gradient is exact; mlstm_kernels' own backward pass leaves it out.
"""

from typing import Any

import torch
from packaging.version import Version
from torch import Tensor
from torch.nn import functional as F

from llm.docs import Stretch
from llm.ops import kernels
from llm.ops.kernels import HALF, Facts, Route, extent
from llm.ops.layouts import over_documents
from llm.ops.linear.mlstm import normalised, stabilisers
from llm.ops.linear.naive import discretised

SIMPLE_GLA = "fla.ops.simple_gla:chunk_simple_gla"
GLA = "fla.ops.gla:chunk_gla"
CHUNK_SCAN = "mamba_ssm.ops.triton.ssd_combined:mamba_chunk_scan_combined"
XL_CHUNK = "mlstm_kernels.torch.chunkwise.triton_xl_chunk:mlstm_chunkwise__xl_chunk"
# tokens of a chunk of mamba-ssm and mlstm_kernels
CHUNK = 128
# its columns beside the values come in so many: rows of states stay aligned
COLUMNS = 16
TRITON = (*HALF, torch.float32)


def linear_facts(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, state: Tensor, **_: Any) -> dict[str, Any]:
    decay = {1: "fixed", 3: "per head", 4: "per channel"}[log_decay.ndim]
    special = {"decay": decay, "gated": decay == "per head" or log_decay.requires_grad}
    return {"sizes": {"K": q.shape[-1], "V": v.shape[-1]}, "extent": _extent(v, q, k), "special": special}


def ssd_facts(q: Tensor, k: Tensor, v: Tensor, step: Tensor, rate: Tensor, state: Tensor, **_: Any) -> dict[str, Any]:
    return {"sizes": {"K": q.shape[-1], "V": v.shape[-1]}, "extent": _extent(v, q, k)}


def mlstm_facts(q: Tensor, k: Tensor, v: Tensor, *_: Any, **settings: Any) -> dict[str, Any]:
    return {"sizes": {"K": q.shape[-1], "V": v.shape[-1]}, "special": settings}


def _extent(v_BTHV: Tensor, q_BTGK: Tensor, k_BTGK: Tensor) -> int:
    """Of the streams, and of the states between chunks."""
    B, T, H, V = v_BTHV.shape
    return max(extent(v_BTHV, q_BTGK, k_BTGK), B * -(-T // CHUNK) * H * V * q_BTGK.shape[-1])


def simple_gla(q, k, v, log_decay, state, *, scale: float = 1.0, at: Stretch) -> tuple[Tensor, Tensor]:
    if log_decay.ndim == 1 and log_decay.requires_grad:
        # the kernel has no gradient of decays that are the same at every token
        log_decay = log_decay.expand(*v.shape[:3])
    fixed = log_decay.ndim == 1
    streams = (*_repeated(v, q, k), v) if fixed else (*_repeated(v, q, k), v, _since_starts(log_decay, at))

    def run(q, k, v, g=None, **rest):
        decay = {"g_gamma": log_decay.float()} if fixed else {"g": g.float()}
        return kernels.entry(SIMPLE_GLA)(q, k, v, **decay, scale=scale, output_final_state=True, **rest)

    return over_documents(run, streams, state, at)


def gla(q, k, v, log_decay, state, *, scale: float = 1.0, at: Stretch) -> tuple[Tensor, Tensor]:
    def run(q, k, v, g, **rest):
        return kernels.entry(GLA)(q, k, v, g.float(), scale=scale, output_final_state=True, **rest)

    return over_documents(run, (*_repeated(v, q, k), v, _since_starts(log_decay, at)), state, at)


def ssd_simple_gla(q, k, v, step, rate, state, *, at: Stretch) -> tuple[Tensor, Tensor]:
    v, log_decay = discretised(v, step, rate)
    return simple_gla(q, k, v, log_decay, state, at=at)


def _repeated(v_BTHV: Tensor, *streams_BTGK: Tensor) -> tuple[Tensor, ...]:
    """Of G groups, each head's own."""
    H = v_BTHV.shape[2]
    return tuple(x if x.shape[2] == H else x.repeat_interleave(H // x.shape[2], 2) for x in streams_BTGK)


def _since_starts(log_decay: Tensor, at: Stretch) -> Tensor:
    """A document's first decay has nothing to fade, and a gradient of 0, exactly."""
    if at.starts_BT is None:
        return log_decay
    return log_decay.masked_fill(at.starts_BT.view(*at.starts_BT.shape, *(1,) * (log_decay.ndim - 2)), 0)


def chunk_scan(q, k, v, step, rate, state, *, at: Stretch) -> tuple[Tensor, Tensor]:
    """SSD: `naive.ssd`."""
    if at.documents is not None:
        state = torch.where(at.documents.starts_BT[:, 0, None, None, None], 0, state)
    y, final = kernels.entry(CHUNK_SCAN)(
        v, step, rate, k, q, chunk_size=CHUNK, initial_states=state.transpose(-1, -2).contiguous(), return_final_states=True
    )
    return y, final.transpose(-1, -2)


def chunk_scan_fixed(q, k, v, log_decay, state, *, scale: float = 1.0, at: Stretch) -> tuple[Tensor, Tensor]:
    """`naive.linear` with one decay per head that does not change: steps of 1."""
    step = log_decay.new_ones(v.shape[:3])
    y, final = chunk_scan(q * scale, k, v, step, log_decay, state, at=at)
    return y, final


def mlstm_simple_gla(q, k, v, log_input, log_forget, state, *, scale: float = 1.0, at: Stretch) -> Any:
    """C, n in one state of V + 1 columns. By the stabiliser m, log f'_t = log f_t + m_{t-1} - m_t, k'_t = e^(i_t - m_t) k_t."""
    starts = at.starts_BT

    def run(q, k, v, log_forget, joint, starts, scale, log_input, m_BH, final_m_BH):
        with torch.no_grad():
            m_BTH = stabilisers(log_input, log_forget, m_BH, starts)
            since_BTH = m_BTH - torch.cat([m_BH[:, None], m_BTH[:, :-1]], 1)
        # no more than a rounding above 0
        decay = log_forget - since_BTH
        gated = k * (log_input - m_BTH).exp()[..., None].to(k.dtype)
        V = v.shape[-1]
        more = -(V + 1) % COLUMNS
        widened = F.pad(F.pad(v, (0, 1), value=1.0), (0, more))
        read, final = simple_gla(q, gated, widened, decay, F.pad(joint, (0, more)), scale=scale, at=at)
        norm = torch.maximum(read[..., V : V + 1].to(joint.dtype).abs(), (-m_BTH).exp()[..., None])
        # the kernel's last state is in the last token's gauge
        final = final[..., : V + 1] * (m_BTH[:, -1] - final_m_BH).exp()[..., None, None]
        return (read[..., :V] / norm).to(v.dtype), final

    return normalised(run, q, k, v, log_input, log_forget, state, starts, scale)


def mlstm_xl_chunk(q, k, v, log_input, log_forget, state, *, scale: float = 1.0, at: Stretch) -> Any:
    """Forward alone. Its scale is K^-1/2, and its forget gate a preactivation: log f = logsigmoid of what is handed over."""
    heads_first = (x.transpose(1, 2).contiguous() for x in (q, k, v))
    C, n, m = state if at.documents is None else (_begun(x, at) for x in state)
    before_sigmoid = log_forget - torch.log(-torch.expm1(log_forget.clamp(max=-1e-30)))
    y, after = kernels.entry(XL_CHUNK)(
        *heads_first,
        log_input.transpose(1, 2).contiguous(),
        before_sigmoid.transpose(1, 2).contiguous(),
        *(x.contiguous() for x in (C, n, m[..., None])),
        return_last_states=True,
        eps=0.0,
        chunk_size=CHUNK,
        autocast_kernel_dtype=v.dtype,
    )
    C, n, m = after
    return y.transpose(1, 2), (C.float(), n.float(), m.float().squeeze(-1))


def _begun(x: Tensor, at: Stretch) -> Tensor:
    """A state before the row's first token: zero where a document starts with it."""
    assert at.starts_BT is not None
    return torch.where(at.starts_BT[:, 0].view(-1, *(1,) * (x.ndim - 1)), 0, x)


def _decay_is(*allowed: str) -> Any:
    def more(facts: Facts) -> str | None:
        decay = facts.special.get("decay", allowed[0])
        return None if decay in allowed else f"takes a decay {' or '.join(allowed)}, not {decay}"

    return more


def _gates_right(facts: Facts) -> str | None:
    """fla's backward pass stops with an error here (fla/ops/common/chunk_o.py, fla 640)."""
    triton = kernels.version("triton")
    gated = facts.gradient and facts.special.get("gated", True)
    if gated and facts.capability[0] == 9 and triton and Version("3.4") <= Version(triton) < Version("3.7.1"):
        return f"has wrong gradients of gates by Triton {triton} on Hopper; Triton 3.7.1, which torch 2.12.1 brings, is right"
    return None


def _whole_chunks(facts: Facts) -> str | None:
    scale, K = facts.special.get("scale"), facts.sizes.get("K")
    if scale is not None and K is not None and abs(scale - K**-0.5) > 1e-9:
        return f"scales by K^-1/2, not by {scale}"
    return f"takes tokens in chunks of {CHUNK}, not {facts.tokens}" if facts.tokens % CHUNK else None


FLA: dict[str, Any] = {"name": "fla", "package": "flash-linear-attention", "extra": "fla", "dtypes": TRITON}
MAMBA: dict[str, Any] = {
    "name": "mamba_ssm",
    "package": "mamba-ssm",
    "entry": CHUNK_SCAN,
    "extra": "mamba-ssm",
    "dtypes": TRITON,
    "widths": {"K": (16, 256, 16), "V": (16, 256, 16)},
    "documents": False,
    "int32": True,
}

LINEAR = (
    Route(
        entry=SIMPLE_GLA,
        run=simple_gla,
        more=lambda facts: _decay_is("fixed", "per head")(facts) or _gates_right(facts),
        widths={"K": (16, 256, 2), "V": (16, 512, 2)},
        **FLA,
    ),
    Route(entry=GLA, run=gla, more=_decay_is("per channel"), widths={"K": (16, 256, 2), "V": (16, 512, 2)}, **FLA),
    Route(run=chunk_scan_fixed, more=_decay_is("fixed"), **MAMBA),
)
SSD = (
    Route(run=chunk_scan, **MAMBA),
    Route(entry=SIMPLE_GLA, run=ssd_simple_gla, more=_gates_right, widths=LINEAR[0].widths, **FLA),
)
MLSTM = (
    Route(
        name="mlstm_kernels",
        package="mlstm_kernels",
        entry=XL_CHUNK,
        extra="mlstm",
        run=mlstm_xl_chunk,
        dtypes=TRITON,
        widths={"K": (16, 512, 16), "V": (16, 1024, 16)},
        documents=False,
        gradient=False,
        more=_whole_chunks,
    ),
    Route(
        entry=SIMPLE_GLA,
        run=mlstm_simple_gla,
        more=_gates_right,
        widths={"K": (16, 256, 2), "V": (16, 1024 - COLUMNS, 2)},
        **FLA,
    ),
)
