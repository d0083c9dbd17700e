"""Softmax attention by flash-attn's CUDA kernels, or by PyTorch's FlexAttention, which Triton compiles. Definition: `naive.py`.

flash-attn takes documents as segments of queries and of keys, its causal mask aligned to the ends of both: a row's first segment
has the cached keys of its document before its own. What else is cached lies in a segment of keys that no query reads. FlexAttention
makes the mask of `chunk.py` in its kernel, block by block, also with keys that every query sees.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from llm.docs import Docs, Stretch
from llm.ops import kernels
from llm.ops.attention.chunk import documents_of
from llm.ops.kernels import HALF, Facts, Route

FLASH = "flash_attn:flash_attn_func"
VARLEN = "flash_attn:flash_attn_varlen_func"
FLEX = "torch.nn.attention.flex_attention:flex_attention"
BLOCK_MASK = "torch.nn.attention.flex_attention:create_block_mask"


def facts(q, k, v, valid, *, window=None, scale, prefix=None, soft_cap=None) -> dict[str, Any]:
    plain = prefix is None and soft_cap is None and k.shape[1] == q.shape[1] and (window is None or window >= q.shape[1])
    return {"sizes": {"K": q.shape[-1], "V": v.shape[-1]}, "special": {"prefix": prefix is not None, "plain": plain}}


def flash(q, k, v, valid, *, window=None, scale, prefix=None, soft_cap=None, at: Stretch) -> Tensor:
    settings = {
        "softmax_scale": scale,
        "causal": True,
        "window_size": (-1, -1) if window is None else (window - 1, 0),
        "softcap": soft_cap or 0.0,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    past = k.shape[1] - q.shape[1]
    if at.documents is None and not past:
        return kernels.entry(FLASH)(q, k, v, **settings)
    docs = at.documents or Docs(torch.zeros(q.shape[:2], dtype=torch.bool)).to(q.device)
    cuts = _with_cache(docs, valid) if past else (docs.cu_seqlens, docs.cu_seqlens)
    y = kernels.entry(VARLEN)(*(x.flatten(0, 1) for x in (q, k, v)), *cuts, docs.max_len, past + docs.max_len, **settings)
    return y.unflatten(0, q.shape[:2])


def _with_cache(docs: Docs, valid_BP: Tensor) -> tuple[Tensor, Tensor]:
    """cu_seqlens of queries and of keys, where P cached keys come before each row's T own.

    Every row opens with a segment of what is cached of ended documents and no queries, so there are B more than in `docs`.
    """
    (B, P), T, at = valid_BP.shape, docs.shape[1], docs.segments
    row_B = torch.arange(B, device=valid_BP.device)
    ended_B = torch.where(at.begins_B, P, P - valid_BP.sum(1))
    ends_N = at.cu_seqlens[1:].long()
    row_N = (ends_N - 1) // T
    places = torch.cat([at.first_B + row_B, torch.arange(len(ends_N), device=row_N.device) + row_N + 1])
    queries = torch.cat([row_B * T, ends_N])
    keys = torch.cat([row_B * (P + T) + ended_B, ends_N + (row_N + 1) * P])
    in_order = (torch.zeros_like(x).scatter(0, places, x) for x in (queries, keys))
    of_queries, of_keys = (F.pad(x, (1, 0)).int() for x in in_order)
    return of_queries, of_keys


def flex(q, k, v, valid, *, window=None, scale, prefix=None, soft_cap=None, at: Stretch) -> Tensor:
    B, T = q.shape[:2]
    past, fixed = k.shape[1] - T, 0 if prefix is None else len(prefix[0])
    document_BS = documents_of(valid, at.starts_BT, T)
    if prefix is not None:
        k, v = (torch.cat([p.to(x.dtype).expand(B, -1, -1, -1), x], 1) for p, x in zip(prefix, (k, v), strict=True))

    def sees(b, h, t, s):
        own, key = past + t, (s - fixed).clamp(min=0)
        near = (key <= own) & (document_BS[b, key] == document_BS[b, own])
        if window is not None:
            near = near & (own - key < window)
        return near | (s < fixed)

    def capped(score, b, h, t, s):
        return soft_cap * torch.tanh(score / soft_cap)

    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    mask = kernels.entry(BLOCK_MASK)(sees, B, None, T, k.shape[2], device=q.device)
    score = None if soft_cap is None else capped
    y = _compiled(q.is_cuda)(q, k, v, score_mod=score, block_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
    return y.transpose(1, 2)


@cache
def _compiled(cuda: bool) -> Any:
    """Uncompiled it makes all scores at once."""
    return torch.compile(kernels.entry(FLEX)) if cuda else kernels.entry(FLEX)


def _no_prefix(facts: Facts) -> str | None:
    if facts.special.get("prefix"):
        return "has no keys that every query sees"
    K, V = facts.sizes.get("K"), facts.sizes.get("V")
    return None if K == V else f"takes values as wide as keys, not K={K}, V={V}"


def _only_causal(facts: Facts) -> str | None:
    return "has nothing on SDPA here" if facts.special.get("plain") and not facts.documents else None


ROUTES = (
    Route(
        name="flash",
        package="flash-attn",
        entry=VARLEN,
        extra="flash-attn",
        run=flash,
        widths={"K": (8, 256, 8)},
        more=_no_prefix,
    ),
    Route(
        name="flex",
        package="torch",
        entry=FLEX,
        extra="dev",
        run=flex,
        dtypes=(*HALF, torch.float32),
        widths={"K": (16, 256, 1), "V": (16, 256, 1)},
        declines=_only_causal,
    ),
)
