"""Memory as a context, segment after segment: the fast PyTorch form. Definition: `naive.context`.

A segment waits for the memory that the one before leaves, so the loop over segments stays; within one all tokens go together, as
in `chunk.py`, on tokens re-laid so that a token's slot is its place in its segment: causality among slots is then the whole mask.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from llm.ops.memory.chunk import after, errors, mixing_of, opened, read
from llm.ops.memory.layout import Layout, chunked, full, joined, layout
from llm.ops.memory.naive import Context, Maps, Memory, Weights
from llm.ops.rotary import rotary
from llm.state import accumulator


def context(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    query_BTHK: Tensor,
    maps: Maps,
    initial: Weights,
    state: Context,
    position_BT: Tensor | None = None,
    *,
    chunk: int,
    step_max: float,
    scale: float,
    theta: float | None,
    prefix: tuple[Tensor, Tensor] | None = None,
    chunks: int | None = None,
) -> tuple[Tensor, Tensor, Context]:
    """(a, m, both `[B, T, H, V]` in v's dtype, what to carry on). Arguments: as in `naive.context`, and `layout`'s chunks."""
    dtype, like = accumulator(v_BTHV.dtype), v_BTHV.dtype
    (B, T), K = v_BTHV.shape[:2], q_BTHK.shape[-1]
    placed = None if position_BT is None else layout(position_BT, chunk, chunks)
    segments = [chunked(x, placed, chunk).unbind(0) for x in (q_BTHK, k_BTHK, v_BTHV, query_BTHK.to(dtype))]
    held = full(placed, T, chunk, v_BTHV.device)
    initial, memory = tuple(w.to(dtype).expand(B, *w.shape) for w in initial), state.memory.to(dtype)
    k_cache, v_cache = (x.movedim(3, 1) for x in (state.k, state.v))
    seen = _seen(chunk, 0 if prefix is None else len(prefix[0]), v_BTHV.device)
    attended, reads = [], []
    for n, (q, k, v, query) in enumerate(zip(*segments, strict=True)):
        memory = opened(n, initial, memory, placed)
        retrieved = _through(memory.start, query).to(like)
        h_k, h_v = (x.transpose(1, 2) for x in maps.to_attention(retrieved.transpose(1, 2), K))
        if theta is not None:
            q, k, h_k = (_rotated(x, theta) for x in (q, k, h_k))
        k_cache = _placed(torch.stack([h_k, k], 3), k_cache, n, held[n], placed)
        v_cache = _placed(torch.stack([h_v, v], 3), v_cache, n, held[n], placed)
        keys, values = (x.flatten(2, 3) for x in (k_cache, v_cache))
        if prefix is not None:
            keys, values = (
                torch.cat([p.to(x.dtype).transpose(0, 1).expand(B, -1, -1, -1), x], 2)
                for p, x in zip(prefix, (keys, values), strict=True)
            )
        a = F.scaled_dot_product_attention(q, keys, values, attn_mask=seen, scale=scale)
        memory, m = _memorised(a, maps, memory, held[n], step_max, dtype, K)
        attended.append(a)
        reads.append(m.to(like))
    a, m = (joined(torch.stack(x), placed, T) for x in (attended, reads))
    return a, m, Context(memory, *(x.movedim(1, 3) for x in (k_cache, v_cache)))


def _seen(chunk: int, fixed: int, device: torch.device) -> Tensor:
    """bool `[C, fixed + 2 C]`: which keys each slot sees."""
    slots = torch.ones(chunk, chunk, dtype=torch.bool, device=device).tril().repeat_interleave(2, -1)
    return F.pad(slots, (fixed, 0), value=True)


def _through(weights: Weights, x_BHCK: Tensor) -> Tensor:
    """M(x): `[B, H, C, V]`."""
    for w in weights[:-1]:
        x_BHCK = F.silu(x_BHCK @ w)
    return x_BHCK @ weights[-1]


def _rotated(x_BHCK: Tensor, theta: float) -> Tensor:
    slots = torch.arange(x_BHCK.shape[2], device=x_BHCK.device)[None]
    return rotary(x_BHCK.transpose(1, 2), slots, theta).transpose(1, 2)


def _placed(new_BHC2K: Tensor, cache_BHC2K: Tensor, n: int, held_BxC: Tensor, placed: Layout | None) -> Tensor:
    """The segment's keys or values: new ones in the slots of tokens, what was there in those before, 0 in those after."""
    if placed is None:
        return torch.where(held_BxC[..., None, None], new_BHC2K, 0)
    opens = placed.opens_NB[n, :, None, None, None, None]
    return torch.where(held_BxC[..., None, None], new_BHC2K, torch.where(opens, 0, cache_BHC2K))


def _memorised(
    a_BHCV: Tensor, maps: Maps, memory: Memory, held_BxC: Tensor, step_max: float, dtype: torch.dtype, key: int
) -> tuple[Memory, Tensor]:
    """(the memory after a segment's attention, what each token reads of it)."""
    q, k, v, *rates = (x.transpose(1, 2) for x in maps.to_memory(a_BHCV.transpose(1, 2), key, step_max, dtype))
    log_keep, log_momentum, step = (torch.where(held_BxC, x, 0) for x in rates)
    mixing = mixing_of(log_keep, log_momentum, held_BxC)
    written = errors(memory.start, k, v, step)
    m = q
    for layer, part in enumerate(written):
        m = F.silu(m) if layer else m
        m = read(m, part, memory.weights[layer], memory.momentum[layer], mixing)
    return after(written, mixing.ends, memory), m
