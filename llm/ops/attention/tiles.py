"""Softmax attention in tiles of queries and keys under a running maximum: nothing of size T x S is made. Definition: `naive.py`.

Keys come in runs, one after the other, from wherever they lie: the cache, a prefix, other ranks. Of every query the highest score m
so far, the sum of exp(score - m) and the so weighted values are kept, and backward makes each tile's scores again from the
queries' log-sum-exp (FlashAttention, arXiv:2205.14135 algorithms 1 and 4; over ranks: Ring Attention, arXiv:2310.01889).
R heads read each of G groups.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from llm.state import accumulator

BLOCK = 256


class Scores(NamedTuple):
    """How scores are made: as in `naive.attention`."""

    window: int | None
    scale: float
    soft_cap: float | None


@dataclass(frozen=True)
class Places:
    """Where tokens are: the number of each one's document `[B, S]`, and the place of the first; the others follow it."""

    document_BS: Tensor
    first: int

    def __getitem__(self, part: slice) -> "Places":
        return Places(self.document_BS[:, part], self.first + part.start)


class Keys(NamedTuple):
    """A run of keys and values `[B, S, G, *]`. at: None of a prefix, which every query sees."""

    k: Tensor
    v: Tensor
    at: Places | None


class Elsewhere(Protocol):
    """Where more keys come from, in exchange for one's own; every step is taken in one order by all that take part."""

    def runs(self, k_BTGK: Tensor, v_BTGV: Tensor) -> Iterator[tuple[int, Keys | None]]:
        """Numbered runs; None where there are no keys to see."""

    def home(self, step: int, dk_BTGK: Tensor, dv_BTGV: Tensor) -> tuple[Tensor, Tensor]:
        """Give the gradients of a run back. Returns those of one's own keys and values that came back in turn."""


def attention(q_BTHK: Tensor, at: Places, runs: Sequence[Keys], scores: Scores, elsewhere: Elsewhere | None = None) -> Tensor:
    """y `[B, T, H, V]`.

    Args:
        runs: of keys. The first holds the queries' own tokens, up to its end, and is what goes elsewhere.
    """
    return _Attention.apply(q_BTHK, at, [keys.at for keys in runs], scores, elsewhere, *(x for keys in runs for x in keys[:2]))


def prefix_run(prefix: tuple[Tensor, Tensor] | None, like_BSGK: Tensor) -> list[Keys]:
    """Keys and values `[n, G, *]` that every query sees, as a run, or none."""
    if prefix is None:
        return []
    k, v = (x.to(like_BSGK.dtype).expand(len(like_BSGK), -1, -1, -1) for x in prefix)
    return [Keys(k, v, None)]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q_BTHK, at, places, scores, elsewhere, *tensors):
        runs = _runs(tensors, places)
        zero = q_BTHK.new_zeros((), dtype=accumulator(q_BTHK.dtype))
        running = [_Running(zero - torch.inf, zero, zero) for _ in _blocks(q_BTHK)]
        more = elsewhere.runs(*tensors[:2]) if elsewhere else ()
        for keys in chain(runs, (keys for _, keys in more if keys)):
            running = [
                _attend(of_block, q_BTHK[:, block], at[block], keys, scores)
                for of_block, block in zip(running, _blocks(q_BTHK), strict=True)
            ]
        y_BHTV = torch.cat([(y / total).flatten(1, 2) for _, total, y in running], 2)
        y_BTHV = y_BHTV.transpose(1, 2).to(q_BTHK.dtype)
        sums_BGRT1 = torch.cat([highest + total.log() for highest, total, _ in running], 3)
        ctx.save_for_backward(q_BTHK, y_BTHV, sums_BGRT1, *tensors)
        ctx.given = at, places, scores, elsewhere
        return y_BTHV

    @staticmethod
    def backward(ctx: Any, dy_BTHV):
        q, y, sums, *tensors = ctx.saved_tensors
        at, places, scores, elsewhere = ctx.given
        asked = _Asked(q, y, dy_BTHV, sums, at)
        gradients = [_attend_backward(asked, keys, scores) for keys in _runs(tensors, places)]
        dq, own_dk, own_dv = gradients[0]
        for more, _, _ in gradients[1:]:
            dq += more
        for step, keys in elsewhere.runs(*tensors[:2]) if elsewhere else ():
            more, dk, dv = (None, *tensors[:2]) if keys is None else _attend_backward(asked, keys, scores)
            dq = dq if more is None else dq + more
            back_k, back_v = elsewhere.home(step, dk.to(q.dtype), dv.to(q.dtype))
            own_dk += back_k
            own_dv += back_v
        given = (x for _, dk, dv in gradients for x in (dk, dv))
        return dq.to(q.dtype), None, None, None, None, *(d.to(x.dtype) for d, x in zip(given, tensors, strict=True))


def _runs(tensors: Sequence[Tensor], places: Sequence[Places | None]) -> list[Keys]:
    return [Keys(k, v, at) for k, v, at in zip(tensors[::2], tensors[1::2], places, strict=True)]


class _Running(NamedTuple):
    """Of a block of queries: the highest score, the sum, `[B, G, R, T, 1]`, and the weighted values `[B, G, R, T, V]`."""

    highest: Tensor
    total: Tensor
    y: Tensor


def _attend(running: _Running, q_BTHK: Tensor, at: Places, keys: Keys, scores: Scores) -> _Running:
    """With one more run of keys."""
    q = _grouped(q_BTHK, keys.k) * _inner_scale(scores)
    highest, total, y = running
    for part, mask in _tiles(at, keys, scores.window):
        k, v = keys.k[:, part].to(q.dtype), keys.v[:, part].to(q.dtype)
        score = torch.einsum("btgrk,bsgk->bgrts", q, k)
        if scores.soft_cap is not None:
            score = score.tanh_().mul_(scores.soft_cap)
        if mask is not None:
            score = score.masked_fill_(~mask, -torch.inf)
        before, highest = highest, torch.maximum(highest, score.amax(-1, keepdim=True))
        weight, kept = score.sub_(highest).exp_(), (before - highest).exp()
        total = kept * total + weight.sum(-1, keepdim=True)
        y = kept * y + torch.einsum("bgrts,bsgv->bgrtv", weight, v)
    return _Running(highest, total, y)


class _Asked(NamedTuple):
    """What backward knows of the queries: themselves, the outputs, the outputs' gradients `[B, T, H, *]`; sums: log-sum-exp."""

    q: Tensor
    y: Tensor
    dy: Tensor
    sums: Tensor
    at: Places


def _attend_backward(asked: _Asked, keys: Keys, scores: Scores) -> tuple[Tensor, Tensor, Tensor]:
    """What a run of keys adds to the gradient of the queries, and the gradients of its keys and values, in the sums' dtype.

    With u = scale q . k / cap: d score = weight (dy . v - dy . y), du = cap (1 - tanh^2 u) d score.
    """
    dk, dv = (torch.zeros(x.shape, dtype=asked.sums.dtype, device=x.device) for x in keys[:2])
    dqs, cap = [], scores.soft_cap or 0.0
    for block in _blocks(asked.q):
        q, dy, y = (_grouped(x[:, block], keys.k) for x in (asked.q, asked.dy, asked.y))
        q, dq, inner = q * _inner_scale(scores), torch.zeros_like(q), torch.einsum("btgrv,btgrv->bgrt", dy, y)
        for part, mask in _tiles(asked.at[block], keys, scores.window):
            k, v = keys.k[:, part].to(q.dtype), keys.v[:, part].to(q.dtype)
            score = torch.einsum("btgrk,bsgk->bgrts", q, k)
            bend = score.tanh_() if cap else None
            weight = (score if bend is None else cap * bend).sub_(asked.sums[:, :, :, block]).exp_()
            if mask is not None:
                weight = weight.masked_fill_(~mask, 0)
            dv[:, part] += torch.einsum("bgrts,btgrv->bsgv", weight, dy)
            du = torch.einsum("btgrv,bsgv->bgrts", dy, v).sub_(inner[..., None]).mul_(weight)
            if bend is not None:
                du.mul_(bend.square_().neg_().add_(1)).mul_(cap)
            dq += torch.einsum("bgrts,bsgk->btgrk", du, k)
            dk[:, part] += torch.einsum("bgrts,btgrk->bsgk", du, q)
        dqs.append(dq.flatten(2, 3) * _inner_scale(scores))
    return torch.cat(dqs, 1), dk, dv


def mask_of(queries: Places, keys: Places, window: int | None) -> Tensor:
    """bool `[B, T, S]`: which of the keys each of the queries sees."""
    t, s = (at.first + torch.arange(at.document_BS.shape[1], device=at.document_BS.device) for at in (queries, keys))
    distance = t[:, None] - s
    near = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    return near & (queries.document_BS[:, :, None] == keys.document_BS[:, None])


def _tiles(queries: Places, keys: Keys, window: int | None) -> Iterator[tuple[slice, Tensor | None]]:
    """The keys in reach of a block of queries, with masks `[B, 1, 1, T, S']`; the latest first, where each query sees itself."""
    S = keys.k.shape[1]
    if keys.at is None:
        yield slice(0, S), None
        return
    behind, ahead = queries.first - keys.at.first, queries.document_BS.shape[1]
    first = 0 if window is None else max(0, behind - window + 1)
    for end in range(min(S, behind + ahead), first, -BLOCK):
        part = slice(max(first, end - BLOCK), end)
        yield part, mask_of(queries, keys.at[part], window)[:, None, None]


def _inner_scale(scores: Scores) -> float:
    return scores.scale if scores.soft_cap is None else scores.scale / scores.soft_cap


def _grouped(x_BTHK: Tensor, k_BSGK: Tensor) -> Tensor:
    """`[B, T, G, R, K]` by the group that each head reads, in the dtype of the sums."""
    return x_BTHK.to(accumulator(x_BTHK.dtype)).unflatten(2, (k_BSGK.shape[2], -1))


def _blocks(q_BTHK: Tensor) -> list[slice]:
    T = q_BTHK.shape[1]
    return [slice(start, min(start + BLOCK, T)) for start in range(0, T, BLOCK)]
