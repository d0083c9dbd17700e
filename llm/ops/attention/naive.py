"""Causal softmax attention, token by token: the definition.

y_t = sum_s softmax_s(a_ts) v_s, a_ts = scale q_t . k_s, over the cached and new tokens s of t's own document with
0 <= t - s < window (the window counts the token itself). Head h reads group h // (H / G).

A soft cap c keeps the scores inside (-c, c): c tanh(a_ts / c) stands for a_ts (Gemma 2, arXiv:2408.00118 sec. 2).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from llm.state import accumulator


def attention(
    q_BTHK: Tensor,
    k_BSGK: Tensor,
    v_BSGV: Tensor,
    valid_BP: Tensor,
    starts_BT: Tensor | None = None,
    *,
    window: int | None = None,
    scale: float,
    prefix: tuple[Tensor, Tensor] | None = None,
    soft_cap: float | None = None,
) -> Tensor:
    """y `[B, T, H, V]`. The first P = S - T keys are the cache; `valid_BP` says which belong to the continued document.

    Args:
        prefix: keys and values `[n, G, *]` of no token, which every query sees whatever its document and window.
    """
    B, T, H, _ = q_BTHK.shape
    past = k_BSGK.shape[1] - T
    k, v = (x.repeat_interleave(H // x.shape[2], 2) for x in (k_BSGK, v_BSGV))
    seen_BS = torch.cat([valid_BP, valid_BP.new_zeros(B, T)], 1)
    s = torch.arange(past + T, device=q_BTHK.device)
    fixed = 0 if prefix is None else len(prefix[0])
    if prefix is not None:
        more = (x.to(k.dtype).repeat_interleave(H // x.shape[1], 1).expand(B, *x.shape[:1], H, -1) for x in prefix)
        k, v = (torch.cat([x, tokens], 1) for x, tokens in zip(more, (k, v), strict=True))
    outputs = []
    for t in range(T):
        if starts_BT is not None:
            seen_BS = seen_BS & ~starts_BT[:, t, None]
        seen_BS = seen_BS | (s == past + t)
        near_BS = seen_BS if window is None else seen_BS & (s > past + t - window)
        near_BS = F.pad(near_BS, (fixed, 0), value=True)
        score_BHS = scale * torch.einsum("bhk,bshk->bhs", q_BTHK[:, t], k)
        if soft_cap is not None:
            score_BHS = soft_cap * (score_BHS.to(accumulator(k.dtype)) / soft_cap).tanh()
        weight_BHS = score_BHS.masked_fill(~near_BS[:, None], -torch.inf).softmax(-1)
        outputs.append(torch.einsum("bhs,bshv->bhv", weight_BHS.to(v.dtype), v))
    return torch.stack(outputs, 1)
