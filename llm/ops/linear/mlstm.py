"""mLSTM in chunks: the core of `chunk.py` with an exponential input gate, a normaliser and a stabiliser. Definition: `naive.mlstm`.

The normaliser is one more value channel, which is always 1, so its gradient is exact. The stabiliser m is a gauge: outputs do not
depend on it, so inside it is a constant, chosen per token and per chunk such that no exponent is positive. Only the state that
leaves depends on its m, and there m is differentiated like everything else.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from llm.ops.linear.chunk import CHUNK, Gauges, PerHead, chunked, joined, reach_of, sums
from llm.state import accumulator

# log of an input gate that is shut
SHUT = -1e30


def mlstm(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    log_input_BTH: Tensor,
    log_forget_BTH: Tensor,
    state: tuple[Tensor, Tensor, Tensor],
    starts_BT: Tensor | None = None,
    *,
    scale: float = 1.0,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """(h `[B, T, H, V]` in v's dtype, (C `[B, H, K, V]`, n `[B, H, K]`, m `[B, H]`)). log_forget <= 0."""
    return normalised(_per_head, q_BTHK, k_BTHK, v_BTHV, log_input_BTH, log_forget_BTH, state, starts_BT, scale)


def normalised(
    run: Callable[..., Any], q, k, v, log_input, log_forget, state, starts, scale
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """mLSTM by `run(q, k, v, log_forget, C and n in one, starts, scale, log_input, m, final m)`, which returns h and C and n."""
    dtype = accumulator(v.dtype)
    log_input, log_forget = log_input.to(dtype), log_forget.to(dtype)
    C, n, m_BH = (x.to(dtype) for x in state)
    final_m_BH = _final_stabiliser(log_input, log_forget, m_BH, starts)
    joint = torch.cat([C, n[..., None]], -1) * (m_BH - m_BH.detach()).exp()[..., None, None]
    h, final = run(q, k, v, log_forget, joint, starts, scale, log_input, m_BH.detach(), final_m_BH.detach())
    final = final * (final_m_BH.detach() - final_m_BH).exp()[..., None, None]
    return h, (final[..., :-1], final[..., -1], final_m_BH)


def _per_head(q, k, v, log_forget, joint, starts, scale, log_input, m_BH, final_m_BH) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        gauges = _gauges(log_input, log_forget, m_BH, final_m_BH, starts)
    read, final = PerHead.apply(q, k, F.pad(v, (0, 1), value=1.0), log_forget, joint, starts, scale, log_input, gauges)
    norm = torch.maximum(read[..., -1:].to(joint.dtype).abs(), (-gauges.token).exp()[..., None])
    return (read[..., :-1] / norm).to(v.dtype), final


def _final_stabiliser(log_input: Tensor, log_forget: Tensor, m_BH: Tensor, starts_BT: Tensor | None) -> Tensor:
    """`[B, H]`: max over the last document's tokens s of log i_s + sum_{u > s} log f_u, and what lies behind of the incoming m."""
    if starts_BT is None:
        kept = torch.ones_like(log_input[..., :1], dtype=torch.bool)
        forgets = log_forget
    else:
        ids = starts_BT.cumsum(1)
        kept = (ids == ids[:, -1:])[..., None]
        forgets = log_forget.where(kept & ~starts_BT[..., None], 0)
    after = F.pad(forgets[:, 1:], (0, 0, 0, 1)).flip(1).cumsum(1).flip(1)
    m = (log_input + after).masked_fill(~kept, SHUT).amax(1)
    # a document that fills the row goes on from the incoming state
    behind = torch.maximum(m, m_BH + forgets.sum(1))
    return behind if starts_BT is None else torch.where(starts_BT.any(1, keepdim=True), m, behind)


def stabilisers(log_input: Tensor, log_forget: Tensor, m_BH: Tensor, starts_BT: Tensor | None) -> Tensor:
    """m_t = max(m_{t-1} + log f_t, log i_t), a document's first its log i: `[B, T, H]`, in log2(T) steps of doubled reach."""
    forgets = log_forget if starts_BT is None else log_forget.masked_fill(starts_BT[..., None], -torch.inf)
    m = torch.cat([torch.maximum(log_input[:, :1], m_BH[:, None] + forgets[:, :1]), log_input[:, 1:]], 1)
    reach = 1
    while reach < m.shape[1]:
        m = torch.cat([m[:, :reach], torch.maximum(m[:, reach:], m[:, :-reach] + forgets[:, reach:])], 1)
        forgets = torch.cat([forgets[:, :reach], forgets[:, reach:] + forgets[:, :-reach]], 1)
        reach *= 2
    return m


def _gauges(log_input: Tensor, log_forget: Tensor, m_BH: Tensor, final_m_BH: Tensor, starts_BT: Tensor | None) -> Gauges:
    """The stabiliser after each token, and before each chunk: the largest log weight of all that is summed there."""
    T = log_input.shape[1]
    N = -(-T // CHUNK)
    reach = reach_of(starts_BT, N, log_input.dtype, log_input.device)
    b = sums(log_forget, reach, N)
    gate = chunked(F.pad(log_input, (0, 0, 0, N * CHUNK - T), value=SHUT), N)
    inside = ((gate - b)[..., None, :] + reach.pairs.log()).amax(-1) + b
    before, chunks = m_BH, []
    for n in range(N):
        chunks.append(before)
        through = reach.through[..., min(n, reach.through.shape[-1] - 1)].log()
        before = torch.maximum(inside[:, :, n, -1], b[:, :, n, -1] + before + through)
    chunks.append(final_m_BH)
    chunk = torch.stack(chunks, -1)
    token = torch.maximum(inside, b + chunk[..., :-1, None] + reach.from_start.log())
    return Gauges(joined(token, T), chunk)
