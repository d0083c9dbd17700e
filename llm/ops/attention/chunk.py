"""Causal softmax attention in blocks of queries on `scaled_dot_product_attention`. Definition: `naive.py`.

A block of C queries sees only the keys that its window and causality allow it, so nothing of size T x T is made for
documents, windows or caches; a row without any of these takes the fused causal kernel whole. That kernel knows no soft cap:
with one, attention runs here in tiles of queries and keys under a running maximum, and backward makes each tile's scores again
from the queries' log-sum-exp (FlashAttention, arXiv:2205.14135 algorithms 1 and 4).
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from llm.ops.attention.masks import made_again
from llm.state import accumulator

BLOCK = 256


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
    """y `[B, T, H, V]`. Arguments: as in `naive.attention`."""
    T, S = q_BTHK.shape[1], k_BSGK.shape[1]
    past = S - T
    if soft_cap is not None:
        k, v = (k_BSGK, v_BSGV) if prefix is None else map(_after, prefix, (k_BSGK, v_BSGV))
        return _Capped.apply(q_BTHK, k, v, _documents(valid_BP, starts_BT, T), window, scale, soft_cap)

    q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BSGK, v_BSGV))
    grouped = k.shape[1] != q.shape[1]
    if prefix is None and past == 0 and starts_BT is None and (window is None or window >= T):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped).transpose(1, 2)

    document_BS = _documents(valid_BP, starts_BT, T)
    block = BLOCK if window is None else max(BLOCK, min(window, 4 * BLOCK))
    outputs = []
    for start in range(0, T, block):
        stop = min(start + block, T)
        first = 0 if window is None else max(0, past + start - window + 1)
        keys = slice(first, past + stop)
        make = partial(_mask, document_BS, slice(past + start, past + stop), keys, window)
        mask = make()
        part = q[:, :, start:stop], k[:, :, keys], v[:, :, keys]
        if prefix is not None:
            part, mask = _with_prefix(part, mask, prefix)
        with made_again(mask, make):
            outputs.append(F.scaled_dot_product_attention(*part, attn_mask=mask, scale=scale, enable_gqa=grouped))
    return torch.cat(outputs, 2).transpose(1, 2)


def _with_prefix(
    part: tuple[Tensor, Tensor, Tensor], mask: Tensor, prefix: tuple[Tensor, Tensor]
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """A block's queries, keys and values `[B, H or G, *, *]` and its mask, with keys `[n, G, *]` before them that all see."""
    q, k, v = part
    more = (x.to(k.dtype).transpose(0, 1).expand(len(k), -1, -1, -1) for x in prefix)
    k, v = (torch.cat([x, tokens], 2) for x, tokens in zip(more, (k, v), strict=True))
    return (q, k, v), F.pad(mask, (len(prefix[0]), 0), value=True)


def _documents(valid_BP: Tensor, starts_BT: Tensor | None, T: int) -> Tensor:
    """`[B, S]`: the number of each key's document; 0 continues from the cache, -1 is a cached token of an ended one."""
    ids_BT = valid_BP.new_zeros(len(valid_BP), T, dtype=torch.long) if starts_BT is None else starts_BT.long().cumsum(1)
    return torch.cat([valid_BP.long() - 1, ids_BT], 1)


def _mask(document_BS: Tensor, queries: slice, keys: slice, window: int | None) -> Tensor:
    """bool `[B, 1, C, S']`: which of the keys each of the queries may see, both by their place among all S tokens."""
    s = torch.arange(keys.start, keys.stop, device=document_BS.device)
    distance = torch.arange(queries.start, queries.stop, device=document_BS.device)[:, None] - s
    near = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    same = document_BS[:, queries, None] == document_BS[:, None, keys]
    return (near & same)[:, None]


class _Capped(torch.autograd.Function):
    """Attention with a soft cap; keys before the S tokens of `document_BS` are a prefix. R heads read each of the G groups."""

    @staticmethod
    def forward(ctx: Any, q_BTHK, k_BSGK, v_BSGV, document_BS, window, scale, cap):
        outputs, sums = [], []
        for queries in _query_blocks(q_BTHK):
            q = _grouped(q_BTHK[:, queries], k_BSGK) * (scale / cap)
            highest, total, y = q.new_full((), -torch.inf), q.new_zeros(()), q.new_zeros(())
            for keys, mask in _key_blocks(queries, q_BTHK, k_BSGK, document_BS, window):
                k, v = k_BSGK[:, keys].to(q.dtype), v_BSGV[:, keys].to(q.dtype)
                score = _bend(q, k).mul_(cap).masked_fill_(~mask, -torch.inf)
                before, highest = highest, torch.maximum(highest, score.amax(-1, keepdim=True))
                weight, kept = score.sub_(highest).exp_(), (before - highest).exp()
                total = kept * total + weight.sum(-1, keepdim=True)
                y = kept * y + torch.einsum("bgrts,bsgv->bgrtv", weight, v)
            outputs.append((y / total).to(q_BTHK.dtype).flatten(1, 2))
            sums.append(highest + total.log())
        y_BTHV = torch.cat(outputs, 2).transpose(1, 2)
        ctx.save_for_backward(q_BTHK, k_BSGK, v_BSGV, document_BS, y_BTHV, torch.cat(sums, 3))
        ctx.window, ctx.scale, ctx.cap = window, scale, cap
        return y_BTHV

    @staticmethod
    def backward(ctx: Any, dy_BTHV):
        """With u = scale q . k / cap: d score = weight (dy . v - dy . y), du = cap (1 - tanh^2 u) d score."""
        q_BTHK, k_BSGK, v_BSGV, document_BS, y_BTHV, sums_BGRT1 = ctx.saved_tensors
        dk, dv = (torch.zeros_like(x, dtype=sums_BGRT1.dtype) for x in (k_BSGK, v_BSGV))
        dqs = []
        for queries in _query_blocks(q_BTHK):
            q, dy, y = (_grouped(x[:, queries], k_BSGK) for x in (q_BTHK, dy_BTHV, y_BTHV))
            q, dq, inner = q * (ctx.scale / ctx.cap), torch.zeros_like(q), torch.einsum("btgrv,btgrv->bgrt", dy, y)
            for keys, mask in _key_blocks(queries, q_BTHK, k_BSGK, document_BS, ctx.window):
                k, v = k_BSGK[:, keys].to(q.dtype), v_BSGV[:, keys].to(q.dtype)
                bend = _bend(q, k)
                weight = (ctx.cap * bend).sub_(sums_BGRT1[:, :, :, queries]).exp_().masked_fill_(~mask, 0)
                dv[:, keys] += torch.einsum("bgrts,btgrv->bsgv", weight, dy)
                du = torch.einsum("btgrv,bsgv->bgrts", dy, v).sub_(inner[..., None]).mul_(weight)
                du.mul_(bend.square_().neg_().add_(1)).mul_(ctx.cap)
                dq += torch.einsum("bgrts,bsgk->btgrk", du, k)
                dk[:, keys] += torch.einsum("bgrts,btgrk->bsgk", du, q)
            dqs.append(dq.flatten(2, 3) * (ctx.scale / ctx.cap))
        return torch.cat(dqs, 1).to(q_BTHK.dtype), dk.to(k_BSGK.dtype), dv.to(v_BSGV.dtype), None, None, None, None


def _after(prefix_nGK: Tensor, x_BSGK: Tensor) -> Tensor:
    """`[B, n + S, G, K]`."""
    return torch.cat([prefix_nGK.to(x_BSGK.dtype).expand(len(x_BSGK), -1, -1, -1), x_BSGK], 1)


def _grouped(x_BTHK: Tensor, k_BSGK: Tensor) -> Tensor:
    """`[B, T, G, R, K]` by the group that each head reads, in the dtype of the sums."""
    return x_BTHK.to(accumulator(x_BTHK.dtype)).unflatten(2, (k_BSGK.shape[2], -1))


def _bend(q_BTGRK: Tensor, k_BSGK: Tensor) -> Tensor:
    """tanh(q . k): `[B, G, R, T, S]`."""
    return torch.einsum("btgrk,bsgk->bgrts", q_BTGRK, k_BSGK).tanh_()


def _query_blocks(q_BTHK: Tensor) -> list[slice]:
    T = q_BTHK.shape[1]
    return [slice(start, min(start + BLOCK, T)) for start in range(0, T, BLOCK)]


def _key_blocks(
    queries: slice, q_BTHK: Tensor, k_BSGK: Tensor, document_BS: Tensor, window: int | None
) -> Iterator[tuple[slice, Tensor]]:
    """The keys in reach of a block of queries, with masks `[B, 1, 1, C, S']`; the latest first, where each query sees itself."""
    S = document_BS.shape[1]
    past, prefix = S - q_BTHK.shape[1], k_BSGK.shape[1] - S
    start, stop = past + queries.start, past + queries.stop
    first = 0 if window is None else max(0, start - window + 1)
    for end in range(stop, first, -BLOCK):
        begin = max(first, end - BLOCK)
        mask = _mask(document_BS, slice(start, stop), slice(begin, end), window)
        yield slice(prefix + begin, prefix + end), mask[:, None]
    if prefix:
        yield slice(0, prefix), document_BS.new_ones(1, 1, 1, 1, 1, dtype=torch.bool)
