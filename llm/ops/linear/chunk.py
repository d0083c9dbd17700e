"""Gated linear recurrence in chunks of C tokens: the fast PyTorch form, cost linear in T. Definition: `naive.py`.

Inside a chunk the recurrence is a masked product (b is the log decay summed since the chunk's or the document's start)

    y_t = sum_{s <= t} (q_t . k_s) exp(b_t - b_s) v_s  +  exp(b_t) q_t S_in

and all chunks are batched into one product; between chunks only S, K x V per head, is handed on (SSD, arXiv:2405.21060 sec. 6;
GLA, arXiv:2312.06635 sec. 4). With one decay per head the backward pass is written by hand: it keeps the streams and the
chunks' incoming states and recomputes scores and decays. A gate's gradient is summed over the paths that cross its token, chunk by
chunk, where GLA's app. C takes one reverse sum of q.dq - k.dk over the whole sequence, which cancels badly in bfloat16.

Sums restart at documents' starts: they are products with a 0/1 matrix, so that no rounding of an earlier document's decay is
ever added and subtracted again.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from llm.state import accumulator

CHUNK = 64
SUBCHUNK = 16


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
        log_decay: finite and <= 0; `[H]` (the same at every token), `[B, T, H]` (per head) or `[B, T, H, K]` (per key channel).
    """
    state = state_BHKV.to(accumulator(v_BTHV.dtype))
    log_decay = log_decay.to(state.dtype)
    if log_decay.ndim == 4:
        return _per_channel(q_BTGK, k_BTGK, v_BTHV, log_decay, state, starts_BT, scale)
    if log_decay.ndim == 1:
        log_decay = log_decay.expand(1, q_BTGK.shape[1], -1)
    return PerHead.apply(q_BTGK, k_BTGK, v_BTHV, log_decay, state, starts_BT, scale, None, None)


class _Reach(NamedTuple):
    """Which tokens of a chunk reach which, for batches of chunks `[B or 1, 1, N, ...]`, as 0/1 in the accumulator's dtype."""

    pairs: Tensor  # [..., C, C] s reaches t: s <= t in one document
    from_start: Tensor  # [..., C] the incoming state reaches t
    to_end: Tensor  # [..., C] t reaches the outgoing state
    through: Tensor  # [...] the incoming state reaches the outgoing one
    starts: Tensor | None  # bool [..., C]


def reach_of(starts_BT: Tensor | None, chunks: int, dtype: torch.dtype, device: torch.device) -> _Reach:
    lower = torch.ones(CHUNK, CHUNK, dtype=dtype, device=device).tril()
    if starts_BT is None:
        one = lower.new_ones(1, 1, 1)
        return _Reach(lower[None, None, None], one[..., None], one[..., None], one, None)
    starts = chunked(starts_BT[..., None], chunks)
    ids = starts.to(torch.int32).cumsum(-1)
    pairs = (ids[..., :, None] == ids[..., None, :]) * lower
    return _Reach(pairs, (ids == 0).to(dtype), (ids == ids[..., -1:]).to(dtype), (ids[..., -1] == 0).to(dtype), starts)


def chunked(x_BTHx: Tensor, chunks: int) -> Tensor:
    """`[B, T, H, ...]` -> `[B, H, N, C, ...]`, padded with zeros: tokens that add nothing and decay nothing."""
    B, T, H = x_BTHx.shape[:3]
    padding = chunks * CHUNK - T
    if padding:
        x_BTHx = F.pad(x_BTHx, (0, 0) * (x_BTHx.ndim - 2) + (0, padding))
    return x_BTHx.reshape(B, chunks, CHUNK, H, *x_BTHx.shape[3:]).movedim(3, 1)


def joined(x_BHNCx: Tensor, T: int) -> Tensor:
    """The inverse of `chunked`."""
    B, H, N, C = x_BHNCx.shape[:4]
    return x_BHNCx.movedim(1, 3).reshape(B, N * C, H, *x_BHNCx.shape[4:])[:, :T]


class _Decays(NamedTuple):
    """exp of summed log decays, 0 where there is no reach."""

    pairs: Tensor  # [B or 1, H, N, C, C]
    from_start: Tensor  # [B or 1, H, N, C]
    to_end: Tensor  # [B or 1, H, N, C]
    through: Tensor  # [B or 1, H, N]


class Gauges(NamedTuple):
    """The scale that exponential input gates are held in: what is stored is the true value times exp(-gauge). Not differentiated.

    token: `[B, T, H]`, of each output. chunk: `[B, H, N + 1]`, of the state before each chunk, and of the final one.
    """

    token: Tensor
    chunk: Tensor


def sums(log_decay: Tensor, reach: _Reach, chunks: int) -> Tensor:
    """`[B or 1, H, N, C]`: log decays summed since the chunk's or the document's start."""
    g = chunked(log_decay, chunks)
    if reach.starts is None:
        return g.cumsum(-1)
    return torch.einsum("bhnts,bhns->bhnt", reach.pairs.expand(-1, g.shape[1], -1, -1, -1), g.where(~reach.starts, 0))


def _decays(log_decay: Tensor, log_input: Tensor | None, gauges: Gauges | None, reach: _Reach, chunks: int) -> _Decays:
    """Decays between the tokens of each chunk, from `[B or 1, T, H]`, times input gates where there are any."""
    b = sums(log_decay, reach, chunks)
    end = b[..., -1:]
    to, since, whole = b, b, end[..., 0]
    if log_input is not None and gauges is not None:
        before, after = gauges.chunk[..., :-1], gauges.chunk[..., 1:]
        since = b - chunked(log_input, chunks)
        to = b - chunked(gauges.token, chunks)
        end, whole = end - after[..., None], whole + before - after
        from_start = to + before[..., None]
    else:
        from_start = b
    # What is out of reach may be a positive sum, whose exp could overflow: it is capped, then set to zero.
    between = (to[..., :, None] - since[..., None, :]).clamp_(max=0).exp_() * reach.pairs
    to_end = (end - since).clamp_(max=0).exp_() * reach.to_end
    return _Decays(between, from_start.clamp(max=0).exp() * reach.from_start, to_end, whole.clamp(max=0).exp() * reach.through)


class PerHead(torch.autograd.Function):
    """One decay per head, with the backward pass of the module's docstring; optionally an input gate, in given gauges.

    Where R heads share a group's queries and keys, their products are made once, and their values stand side by side (`_wide`).
    """

    @staticmethod
    def forward(ctx: Any, q, k, v, log_decay, state, starts, scale, log_input, gauges):
        T, G, N = q.shape[1], q.shape[2], -(-q.shape[1] // CHUNK)
        reach = reach_of(starts, N, state.dtype, state.device)
        decay = _decays(log_decay, log_input, gauges, reach, N)
        from_start, to_end = (x[..., None].to(v.dtype) for x in (decay.from_start, decay.to_end))
        qc, kc, vc = (chunked(x, N) for x in (q * scale, k, v))
        scores = _by_head(qc @ kc.transpose(-1, -2), decay.pairs)
        updates = _narrow(kc.transpose(-1, -2) @ _wide(vc * to_end, G), vc.shape[1])
        incoming, final = _handed_on(state, decay.through, updates)
        y = scores.to(v.dtype) @ vc + _narrow(qc @ _wide(incoming.to(v.dtype), G), vc.shape[1]) * from_start
        ctx.save_for_backward(q, k, v, log_decay, incoming, starts, log_input, *(gauges or ()))
        ctx.scale = scale
        return joined(y, T).to(v.dtype), final

    @staticmethod
    def backward(ctx: Any, dy, dfinal):
        q, k, v, log_decay, incoming, starts, log_input, *gauges = ctx.saved_tensors
        T, G, H, N = q.shape[1], q.shape[2], v.shape[2], incoming.shape[2]
        reach = reach_of(starts, N, incoming.dtype, incoming.device)
        decay = _decays(log_decay, log_input, Gauges(*gauges) if gauges else None, reach, N)
        from_start, to_end = (x[..., None].to(v.dtype) for x in (decay.from_start, decay.to_end))
        qc, kc, vc, dyc = (chunked(x, N) for x in (q * ctx.scale, k, v, dy))

        dread = _wide(dyc * from_start, G)
        dupdates = _narrow(qc.transpose(-1, -2) @ dread, H)
        doutgoing, dstate = _handed_back(dfinal, decay.through, dupdates)
        before, after = (_wide(x.to(v.dtype), G) for x in (incoming, doutgoing))
        scores = _by_head(qc @ kc.transpose(-1, -2), decay.pairs)
        dproducts = dyc @ vc.transpose(-1, -2)
        dscores = (dproducts * decay.pairs).to(v.dtype).unflatten(1, (G, -1)).sum(2)
        dv_after = to_end * _narrow(kc @ after, H)
        dq = dscores @ kc + dread @ before.transpose(-1, -2)
        dk = dscores.transpose(-1, -2) @ qc + _wide(vc * to_end, G) @ after.transpose(-1, -2)
        dv = scores.to(v.dtype).transpose(-1, -2) @ dyc + dv_after

        dlog_decay = dlog_input = None
        if ctx.needs_input_grad[3] or ctx.needs_input_grad[7]:
            crossing = dproducts * scores
            read = (_narrow(dread * (qc @ before), H)).sum(-1).to(dstate.dtype)
            written = (vc.to(dstate.dtype) * dv_after).sum(-1)
            through = decay.through * (incoming * doutgoing).sum((-1, -2))
            dlog_decay = joined(_gradient_of_decays(crossing, read, written, through, reach), T).sum_to_size(log_decay.shape)
            dlog_input = None if log_input is None else joined(crossing.sum(-2) + written, T)
        return joined(dq, T) * ctx.scale, joined(dk, T), joined(dv, T), dlog_decay, dstate, None, None, dlog_input, None


def _by_head(products: Tensor, decays: Tensor) -> Tensor:
    """Each group's products `[B, G, N, C, C]` times the decays `[B or 1, H, N, C, C]` of its heads: `[B, H, N, C, C]`."""
    return (products[:, :, None] * decays.unflatten(1, (products.shape[1], -1))).flatten(1, 2)


def _wide(x_BHNxV: Tensor, groups: int) -> Tensor:
    """`[B, H, N, x, V]` -> `[B, G, N, x, R V]`: a group's heads side by side."""
    return x_BHNxV.unflatten(1, (groups, -1)).movedim(2, -2).flatten(-2)


def _narrow(x_BGNxV: Tensor, heads: int) -> Tensor:
    """The inverse of `_wide`."""
    return x_BGNxV.unflatten(-1, (heads // x_BGNxV.shape[1], -1)).movedim(-2, 2).flatten(1, 2)


def _gradient_of_decays(crossing: Tensor, read: Tensor, written: Tensor, through: Tensor, reach: _Reach) -> Tensor:
    """`[B, H, N, C]`: each token's log decay scales every path that crosses it, and gets the sum of their gradients.

    Args:
        crossing: `[B, H, N, C, C]`, of the paths from s to t. read: `[B, H, N, C]`, from the incoming state to t.
        written: from s to the outgoing state. through: `[B, H, N]`, from state to state.
    """
    pairs = reach.pairs.expand(-1, read.shape[1], read.shape[2], -1, -1)
    ending = crossing.sum(-1) - crossing.sum(-2) + read
    later = torch.einsum("bhnts,bhnt->bhns", pairs, ending)
    earlier = torch.einsum("bhnts,bhns->bhnt", pairs.tril(-1), written * reach.to_end)
    total = later + earlier + (reach.from_start * reach.through[..., None]) * through[..., None]
    return total if reach.starts is None else total.where(~reach.starts, 0)


def _handed_on(state: Tensor, through: Tensor, updates: Tensor) -> tuple[Tensor, Tensor]:
    """Each chunk's incoming state `[B, H, N, K, V]` and the final one `[B, H, K, V]`."""
    incoming = []
    for n in range(updates.shape[2]):
        incoming.append(state)
        state = through[:, :, n, None, None] * state + updates[:, :, n]
    return torch.stack(incoming, 2), state


def _handed_back(dstate: Tensor, through: Tensor, dupdates: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of each chunk's outgoing state and of the initial one."""
    doutgoing = []
    for n in reversed(range(dupdates.shape[2])):
        doutgoing.append(dstate)
        dstate = through[:, :, n, None, None] * dstate + dupdates[:, :, n]
    return torch.stack(doutgoing[::-1], 2), dstate


def _per_channel(q, k, v, log_decay, state, starts, scale) -> tuple[Tensor, Tensor]:
    """One decay per key channel: scores in sub-chunks, each scaled from its own first token so that no factor exceeds 1."""
    T = q.shape[1]
    N = -(-T // CHUNK)
    q, k = (x.repeat_interleave(v.shape[2] // x.shape[2], 2) for x in (q, k))
    reach = reach_of(starts, N, state.dtype, state.device)
    qc, kc, vc, g = (chunked(x.to(state.dtype), N) for x in (q * scale, k, v, log_decay))
    if reach.starts is None:
        b = g.cumsum(-2)
    else:
        b = reach.pairs @ g.where(~reach.starts[..., None], 0)
    to_end = (b[..., -1:, :] - b).clamp(max=0).exp() * reach.to_end[..., None]
    through = b[..., -1, :].exp() * reach.through[..., None]
    incoming, outputs = state, []
    updates = (kc * to_end).transpose(-1, -2) @ vc
    scores = _channel_scores(qc, kc, b, reach.pairs)
    from_start = qc * b.exp() * reach.from_start[..., None]
    for n in range(N):
        outputs.append(from_start[:, :, n] @ incoming)
        incoming = through[:, :, n, :, None] * incoming + updates[:, :, n]
    y = scores @ vc + torch.stack(outputs, 2)
    return joined(y, T).to(v.dtype), incoming


def _channel_scores(q: Tensor, k: Tensor, b: Tensor, pairs: Tensor) -> Tensor:
    """`[B, H, N, C, C]`: sum_K q_t k_s exp(b_t - b_s), 0 out of reach."""
    rows = []
    for first in range(0, CHUNK, SUBCHUNK):
        rows_t, past = slice(first, first + SUBCHUNK), slice(0, first)
        base = b[..., first : first + 1, :]
        q_scaled = q[..., rows_t, :] * (b[..., rows_t, :] - base).clamp(max=0).exp()
        k_scaled = k[..., past, :] * (base - b[..., past, :]).clamp(max=0).exp()
        within = (b[..., rows_t, None, :] - b[..., None, rows_t, :]).clamp(max=0).exp()
        near = torch.einsum("bhntk,bhnsk,bhntsk->bhnts", q[..., rows_t, :], k[..., rows_t, :], within)
        row = torch.cat([q_scaled @ k_scaled.transpose(-1, -2), near], -1)
        rows.append(F.pad(row, (0, CHUNK - first - SUBCHUNK)))
    return torch.cat(rows, -2) * pairs
