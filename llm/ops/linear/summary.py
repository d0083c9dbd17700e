"""What a stretch of tokens does to the state of a gated linear recurrence, without its outputs: one product over the stretch.

    S_out = a S_in + S        a = prod_t a_t, 0 where a document starts in the stretch        S = sum_t (prod_{s > t} a_s) k_t v_t^T

over the tokens t of the document that the stretch ends in. Sums of log decays run from the end, so none crosses a start. Stretches
compose: (a, S) then (b, R) is (b a, b S + R). mLSTM's C and n do the same, in the gauge m = max_t (log i_t + sum_{s > t} log f_s).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from llm.state import accumulator


class Summary(NamedTuple):
    """transition: `[B, H]` or `[B, H, K]`, in [0, 1]. update: `[B, H, K, V]`, the state behind the stretch from a state of zero."""

    transition: Tensor
    update: Tensor


def linear(k_BTGK: Tensor, v_BTHV: Tensor, log_decay: Tensor, starts_BT: Tensor | None) -> Summary:
    """log_decay: as in `naive.linear`."""
    dtype = accumulator(v_BTHV.dtype)
    B, T, H, _ = v_BTHV.shape
    log_decay = log_decay.to(dtype).expand(B, T, H) if log_decay.ndim < 4 else log_decay.to(dtype)
    k, v = k_BTGK.to(dtype).repeat_interleave(H // k_BTGK.shape[2], 2), v_BTHV.to(dtype)
    after, total = _after(log_decay)
    weight = _reaching(after.exp(), starts_BT)
    k = k * (weight[..., None] if weight.ndim < 4 else weight)
    return Summary(_through(total.exp(), starts_BT), torch.einsum("bthk,bthv->bhkv", k, v))


def compose_linear(state: tuple[Tensor, ...], summary: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The state behind a stretch from the state before it. summary: a `Summary`'s tensors."""
    (state_BHKV,), (a, update) = state, summary
    return ((a[..., None, None] if a.ndim < 3 else a[..., None]) * state_BHKV + update,)


class MSummary(NamedTuple):
    """log_forget: `[B, H]`, -inf where the incoming state does not pass. C, n, m: the state behind the stretch alone."""

    log_forget: Tensor
    C: Tensor
    n: Tensor
    m: Tensor


def mlstm(k_BTHK: Tensor, v_BTHV: Tensor, log_input_BTH: Tensor, log_forget_BTH: Tensor, starts_BT: Tensor | None) -> MSummary:
    dtype = accumulator(v_BTHV.dtype)
    k, v, log_input, log_forget = (x.to(dtype) for x in (k_BTHK, v_BTHV, log_input_BTH, log_forget_BTH))
    after, total = _after(log_forget)
    reach = log_input + after
    if starts_BT is not None:
        reach = reach.masked_fill(~_in_last(starts_BT)[..., None], -torch.inf)
        total = total.masked_fill(starts_BT.any(1)[:, None], -torch.inf)
    m = reach.amax(1)
    weighted = (reach - m[:, None]).exp()[..., None] * k
    return MSummary(total, torch.einsum("bthk,bthv->bhkv", weighted, v), weighted.sum(1), m)


def compose_mlstm(state: tuple[Tensor, ...], summary: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """As `compose_linear`, of an `MSummary`'s tensors."""
    (C, n, m), (log_forget, more_C, more_n, more_m) = state, summary
    kept = log_forget + m
    after = torch.maximum(kept, more_m)
    old, new = (kept - after).exp()[..., None], (more_m - after).exp()[..., None]
    return old[..., None] * C + new[..., None] * more_C, old * n + new * more_n, after


def _after(log_decay: Tensor) -> tuple[Tensor, Tensor]:
    """(summed over the tokens behind each, over all)."""
    whole = log_decay.flip(1).cumsum(1).flip(1)
    return torch.cat([whole[:, 1:], torch.zeros_like(whole[:, :1])], 1), whole[:, 0]


def _in_last(starts_BT: Tensor) -> Tensor:
    """Which tokens are of the document that the stretch ends in."""
    ids = starts_BT.int().cumsum(1)
    return ids == ids[:, -1:]


def _reaching(weight: Tensor, starts_BT: Tensor | None) -> Tensor:
    if starts_BT is None:
        return weight
    inside = _in_last(starts_BT)
    return torch.where(inside.view(*inside.shape, *(1,) * (weight.ndim - 2)), weight, 0)


def _through(total: Tensor, starts_BT: Tensor | None) -> Tensor:
    if starts_BT is None:
        return total
    passes = ~starts_BT.any(1)
    return torch.where(passes.view(-1, *(1,) * (total.ndim - 1)), total, 0)
