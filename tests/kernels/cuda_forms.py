"""What kernels in CUDA promise, in PyTorch: they have no interpreter, so these stand in for them, by their documented signatures.

`tests/kernels/test_signatures.py` compares the signatures with the installed packages'.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from llm.ops import kernels


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, window_size=(-1, -1), softcap=0.0, **rest) -> Tensor:
    """Bottom-right aligned: query i sees the keys from i + S - T - window_size[0] to i + S - T."""
    assert (causal, dropout_p, set(rest) - {"deterministic"}) == (True, 0.0, set())
    T, S = q.shape[1], k.shape[1]
    k, v = (x.repeat_interleave(q.shape[2] // x.shape[2], 2) for x in (k, v))
    score = softmax_scale * torch.einsum("bthk,bshk->bhts", q, k)
    if softcap:
        score = softcap * torch.tanh(score / softcap)
    ahead = torch.arange(S) - torch.arange(T)[:, None] - (S - T)
    left, right = window_size
    hidden = (ahead > (0 if right < 0 else min(right, 0))) | ((ahead < -left) if left >= 0 else False)
    return torch.einsum("bhts,bshv->bthv", score.masked_fill(hidden, -torch.inf).softmax(-1), v)


def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None, causal=False, **rest
) -> Tensor:
    """Of each pair of segments alone; one without queries gives nothing."""
    assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32
    assert int(cu_seqlens_q.diff().max()) <= max_seqlen_q
    assert int(cu_seqlens_k.diff().max()) <= max_seqlen_k
    assert (cu_seqlens_q[-1], cu_seqlens_k[-1]) == (len(q), len(k))
    outputs = []
    for (a, b), (c, d) in zip(pairwise(cu_seqlens_q.tolist()), pairwise(cu_seqlens_k.tolist()), strict=True):
        settings = {"dropout_p": dropout_p, "softmax_scale": softmax_scale, "causal": causal, **rest}
        outputs += [flash_attn_func(q[None, a:b], k[None, c:d], v[None, c:d], **settings)[0]] if b > a else []
    return torch.cat(outputs)


def causal_conv1d_fn(x, weight, bias=None, seq_idx=None, initial_states=None, return_final_states=False, **rest) -> Tensor:
    """x `[B, D, T]`; a token sees those before it with its own number."""
    assert (initial_states, return_final_states, rest) == (None, False, {})
    if seq_idx is not None:
        assert seq_idx.dtype == torch.int32
        assert x.stride(1) == 1, "document numbers need channels beside each other"
    T, W = x.shape[2], weight.shape[1]
    y = torch.zeros_like(x) if bias is None else bias[:, None].expand_as(x)
    for lag in range(min(W, T)):
        seen = torch.nn.functional.pad(x[:, :, : T - lag], (lag, 0))
        if seq_idx is not None:
            seen = seen * (seq_idx == torch.nn.functional.pad(seq_idx[:, : T - lag], (lag, 0), value=-1))[:, None]
        y = y + weight[:, -1 - lag, None] * seen
    return y


def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False) -> Tensor:
    """u, delta `[B, D, T]`; A `[D, N]`; B, C `[B, G, N, T]`: all of one dtype, from no state."""
    assert (D, z, delta_bias, delta_softplus, return_last_state) == (None, None, None, False, False)
    assert {x.dtype for x in (u, delta, A, B, C)} == {torch.float32}
    B, C = (x.repeat_interleave(u.shape[1] // x.shape[1], 1) for x in (B, C))
    h, outputs = u.new_zeros(*u.shape[:2], A.shape[1]), []
    for t in range(u.shape[2]):
        h = (delta[:, :, t, None] * A).exp() * h + delta[:, :, t, None] * B[..., t] * u[:, :, t, None]
        outputs.append((C[..., t] * h).sum(-1))
    return torch.stack(outputs, 2)


FORMS: dict[str, Any] = {
    "flash_attn:flash_attn_func": flash_attn_func,
    "flash_attn:flash_attn_varlen_func": flash_attn_varlen_func,
    "causal_conv1d:causal_conv1d_fn": causal_conv1d_fn,
    "mamba_ssm.ops.selective_scan_interface:selective_scan_fn": selective_scan_fn,
}


@contextmanager
def installed(**other: Any) -> Iterator[None]:
    """These count as the packages' own."""
    entry, missing = kernels.entry, kernels.missing
    forms = FORMS | other
    with (
        patch.object(kernels, "missing", lambda route: None if route.entry in forms else missing(route)),
        patch.object(kernels, "entry", lambda name: forms.get(name) or entry(name)),
    ):
        yield
