"""Causal softmax attention in blocks of queries on `scaled_dot_product_attention`. Definition: `naive.py`.

A block of C queries sees only the keys that its window and causality allow it, so nothing of size T x T is made for
documents, windows or caches; a row without any of these takes the fused causal kernel whole. That kernel knows no soft cap:
with one, attention runs in `tiles.py`.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from llm.ops.attention import tiles
from llm.ops.attention.masks import made_again

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
        at = tiles.Places(documents_of(valid_BP, starts_BT, T), 0)
        runs = [tiles.Keys(k_BSGK, v_BSGV, at), *tiles.prefix_run(prefix, k_BSGK)]
        return tiles.attention(q_BTHK, at[past:], runs, tiles.Scores(window, scale, soft_cap))

    q, k, v = (x.transpose(1, 2) for x in (q_BTHK, k_BSGK, v_BSGV))
    if q.is_cpu and T >= BLOCK:
        # a head's rows side by side: from rows H apart the CPU's kernel takes up to 1.1 times as long (bfloat16, 8192 tokens)
        q, k, v = (x.contiguous() for x in (q, k, v))
    grouped = k.shape[1] != q.shape[1]
    if prefix is None and past == 0 and starts_BT is None and (window is None or window >= T):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped).transpose(1, 2)

    at = tiles.Places(documents_of(valid_BP, starts_BT, T), 0)
    block = BLOCK if window is None else max(BLOCK, min(window, 4 * BLOCK))
    outputs = []
    for start in range(0, T, block):
        stop = min(start + block, T)
        first = 0 if window is None else max(0, past + start - window + 1)
        keys = slice(first, past + stop)
        make = partial(_mask, at[past + start : past + stop], at[keys], window)
        mask = make()
        part = q[:, :, start:stop], k[:, :, keys], v[:, :, keys]
        if prefix is not None:
            part, mask = _with_prefix(part, mask, prefix)
        with made_again(mask, make):
            outputs.append(F.scaled_dot_product_attention(*part, attn_mask=mask, scale=scale, enable_gqa=grouped))
    return torch.cat(outputs, 2).transpose(1, 2)


def _mask(queries: tiles.Places, keys: tiles.Places, window: int | None) -> Tensor:
    """For all heads."""
    return tiles.mask_of(queries, keys, window)[:, None]


def _with_prefix(
    part: tuple[Tensor, Tensor, Tensor], mask: Tensor, prefix: tuple[Tensor, Tensor]
) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
    """A block's queries, keys and values `[B, H or G, *, *]` and its mask, with keys `[n, G, *]` before them that all see."""
    q, k, v = part
    more = (x.to(k.dtype).transpose(0, 1).expand(len(k), -1, -1, -1) for x in prefix)
    k, v = (torch.cat([x, tokens], 2) for x, tokens in zip(more, (k, v), strict=True))
    return (q, k, v), F.pad(mask, (len(prefix[0]), 0), value=True)


def documents_of(valid_BP: Tensor, starts_BT: Tensor | None, T: int) -> Tensor:
    """`[B, S]`: the number of each key's document; 0 continues from the cache, -1 is a cached token of an ended one."""
    ids_BT = valid_BP.new_zeros(len(valid_BP), T, dtype=torch.long) if starts_BT is None else starts_BT.long().cumsum(1)
    return torch.cat([valid_BP.long() - 1, ids_BT], 1)
