"""Gated linear recurrence, token by token: the definition.

    S_t = a_t S_{t-1} + k_t v_t^T        y_t = scale q_t S_t        a_t = exp(log_decay_t), 0 at a document's start

with one decay per head (RetNet, arXiv:2307.08621 eq. 6; Mamba-2 / SSD, arXiv:2405.21060; mLSTM's forget gate) or one per key
channel (GLA, arXiv:2312.06635 eq. 3). States and sums are float32, or float64 when the streams are.
"""

import torch
from torch import Tensor

from llm.state import accumulator


def linear(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    log_decay: Tensor,
    state_BHKV: Tensor,
    starts_BT: Tensor | None = None,
    *,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """(y `[B, T, H, V]` in v's dtype, final state `[B, H, K, V]`).

    Args:
        log_decay: <= 0; `[H]` (the same at every token), `[B, T, H]` (per head) or `[B, T, H, K]` (per key channel).
    """
    dtype = accumulator(v_BTHV.dtype)
    B, T, H, _ = q_BTHK.shape
    q, k, v, state = (x.to(dtype) for x in (q_BTHK, k_BTHK, v_BTHV, state_BHKV))
    decay = log_decay.to(dtype).exp()
    decay = decay.expand(B, T, H)[..., None] if decay.ndim < 4 else decay
    outputs = []
    for t in range(T):
        if starts_BT is not None:
            state = torch.where(starts_BT[:, t, None, None, None], 0, state)
        state = decay[:, t, :, :, None] * state + k[:, t, :, :, None] * v[:, t, :, None, :]
        outputs.append(scale * torch.einsum("bhk,bhkv->bhv", q[:, t], state))
    return torch.stack(outputs, 1).to(v_BTHV.dtype), state
