"""Gated linear recurrence, token by token: the definition.

    S_t = a_t S_{t-1} + k_t v_t^T        y_t = scale q_t S_t        a_t = exp(log_decay_t), 0 at a document's start

with one decay per head (RetNet, arXiv:2307.08621 eq. 6; Mamba-2 / SSD, arXiv:2405.21060; mLSTM's forget gate) or one per key
channel (GLA, arXiv:2312.06635 eq. 3). States and sums are float32, or float64 when the streams are.
"""

import torch
from torch import Tensor

from llm.state import accumulator


def linear(
    q_BTGK: Tensor,
    k_BTGK: Tensor,
    v_BTHV: Tensor,
    log_decay: Tensor,
    state_BHKV: Tensor,
    starts_BT: Tensor | None = None,
    *,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """(y `[B, T, H, V]` in v's dtype, final state `[B, H, K, V]`). q and k may come in G groups: head h reads group h // (H / G).

    Args:
        log_decay: <= 0; `[H]` (the same at every token), `[B, T, H]` (per head) or `[B, T, H, K]` (per key channel).
    """
    dtype = accumulator(v_BTHV.dtype)
    B, T, H, _ = v_BTHV.shape
    q, k = (x.to(dtype).repeat_interleave(H // x.shape[2], 2) for x in (q_BTGK, k_BTGK))
    v, state = v_BTHV.to(dtype), state_BHKV.to(dtype)
    decay = log_decay.to(dtype).exp()
    decay = decay.expand(B, T, H)[..., None] if decay.ndim < 4 else decay
    outputs = []
    for t in range(T):
        if starts_BT is not None:
            state = torch.where(starts_BT[:, t, None, None, None], 0, state)
        state = decay[:, t, :, :, None] * state + k[:, t, :, :, None] * v[:, t, :, None, :]
        outputs.append(scale * torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    return torch.stack(outputs, 1).to(v_BTHV.dtype), state


def discretised(v_BTHV: Tensor, step_BTH: Tensor, rate_H: Tensor) -> tuple[Tensor, Tensor]:
    """(step v, log decay `[B, T, H]`) of a state space with one rate per head, Euler's step for its input (SSD, sec. 7)."""
    return v_BTHV * step_BTH[..., None].to(v_BTHV.dtype), rate_H * step_BTH


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
    """mLSTM (xLSTM, arXiv:2405.04517 eqs. 19-27, stabilised as in eq. 15): (h `[B, T, H, V]`, (C, n, m)).

        C_t = f_t C_{t-1} + i_t k_t v_t^T      n_t = f_t n_{t-1} + i_t k_t      h_t = C_t^T q_t / max(|n_t . q_t|, 1)

    C `[B, H, K, V]` and n `[B, H, K]` are kept times exp(-m), m_t = max(log f_t + m_{t-1}, log i_t): h does not depend on m. At a
    document's start nothing lies behind, so m_t = log i_t there. q is scaled; the paper scales k, which is the same.
    """
    dtype = accumulator(v_BTHV.dtype)
    q, k, v, log_input, log_forget = (x.to(dtype) for x in (q_BTHK, k_BTHK, v_BTHV, log_input_BTH, log_forget_BTH))
    C, n, m = state
    outputs = []
    for t in range(q.shape[1]):
        kept = log_forget[:, t] + m
        if starts_BT is not None:
            kept = kept.masked_fill(starts_BT[:, t, None], -torch.inf)
        m = torch.maximum(kept, log_input[:, t])
        forget, write = (kept - m).exp()[..., None], (log_input[:, t] - m).exp()[..., None] * k[:, t]
        C = forget[..., None] * C + write[..., None] * v[:, t, :, None, :]
        n = forget * n + write
        read = scale * torch.einsum("bhk,bhkv->bhv", q[:, t], C)
        norm = scale * (q[:, t] * n).sum(-1)
        outputs.append(read / torch.maximum(norm.abs(), (-m).exp())[..., None])
    return torch.stack(outputs, 1).to(v_BTHV.dtype), (C, n, m)
