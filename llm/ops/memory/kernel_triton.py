"""A linear memory handed on from chunk to chunk in one launch, and its gradient in another; the algebra: `chunk.py`.

Columns of M and S never meet: a value channel's error is made of its own column of the weights. So a program holds some columns of
a head's matrices on chip and takes all chunks in turn; what chunks then read, and gradients that need no order among chunks, are
batched products of PyTorch's. All is float32, and its products are TF32.

Imported at first use: `kernel.py`.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from llm.ops.kernels import capability

# Numbers of a matrix that a program holds: with M, S and W, and keys on their way, they fill its processor's registers.
HELD, WARPS = 2048, 8


@triton.jit
def _read(of, row, C: tl.constexpr, first, length: tl.constexpr, columns, width: tl.constexpr):
    """`[length, columns]` of `[row, first :, columns]` of `[rows, C, width]`; 0 outside."""
    t = first + tl.arange(0, length)
    inside = (t < C)[:, None] & (columns < width)[None, :]
    return tl.load(of + (row * C + t)[:, None] * width + columns[None, :], mask=inside, other=0.0)


@triton.jit
def _write(to, value, row, C: tl.constexpr, first, length: tl.constexpr, columns, width: tl.constexpr):
    t = first + tl.arange(0, length)
    inside = (t < C)[:, None] & (columns < width)[None, :]
    tl.store(to + (row * C + t)[:, None] * width + columns[None, :], value, mask=inside)


@triton.jit
def _numbers(of, row, C: tl.constexpr, first, length: tl.constexpr):
    """`[length, 1]`, a number for each token."""
    t = first + tl.arange(0, length)
    return tl.load(of + row * C + t, mask=t < C, other=0.0)[:, None]


@triton.jit
def _forward(
    k, v, step, to_weights, to_momentum, keeps, enters, fades, opening, initial, start, weights, momentum,
    before_weights, before_momentum, error, last_start, last_weights, last_momentum,
    N, B, H, C: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    bh = tl.program_id(1).to(tl.int64)
    channels, columns = tl.arange(0, BK), tl.program_id(0) * BV + tl.arange(0, BV)
    W = _read(start, bh, K, 0, BK, columns, V)
    M = _read(weights, bh, K, 0, BK, columns, V)
    S = _read(momentum, bh, K, 0, BK, columns, V)
    for n in range(N):
        row = bh + n * B * H
        opens = tl.load(opening + n * B + bh // H)
        if opens == 2:
            M = _read(initial, bh, K, 0, BK, columns, V)
            S = tl.zeros_like(S)
        if opens > 0:
            W = M
        _write(before_weights, M, row, K, 0, BK, columns, V)
        _write(before_momentum, S, row, K, 0, BK, columns, V)
        M = tl.load(keeps + row) * M + tl.load(enters + row) * S
        S = tl.load(fades + row) * S
        for c in range(0, C, BC):
            keys = _read(k, row, C, c, BC, channels, K)
            missed = tl.dot(keys, W) - _read(v, row, C, c, BC, columns, V)
            _write(error, missed, row, C, c, BC, columns, V)
            update = -2 * _numbers(step, row, C, c, BC) * missed
            keys = _read(k, row, C, c, BC, channels, K)
            M += tl.dot(tl.trans(keys), _numbers(to_weights, row, C, c, BC) * update)
            S += tl.dot(tl.trans(keys), _numbers(to_momentum, row, C, c, BC) * update)
    _write(last_start, W, bh, K, 0, BK, columns, V)
    _write(last_weights, M, bh, K, 0, BK, columns, V)
    _write(last_momentum, S, bh, K, 0, BK, columns, V)


@triton.jit
def _backward(
    k, step, to_weights, to_momentum, keeps, enters, fades, opening,
    dbefore_weights, dbefore_momentum, derror, dlast_start, dlast_weights, dlast_momentum,
    dafter_weights, dafter_momentum, of_weights, of_momentum, dinitial, dstart, dweights, dmomentum,
    N, B, H, C: tl.constexpr, K: tl.constexpr, V: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """of_weights, of_momentum: k dM and k dS of the chunk's last M and S. dinitial: holds zeros."""
    bh = tl.program_id(1).to(tl.int64)
    channels, columns = tl.arange(0, BK), tl.program_id(0) * BV + tl.arange(0, BV)
    dW = _read(dlast_start, bh, K, 0, BK, columns, V)
    dM = _read(dlast_weights, bh, K, 0, BK, columns, V)
    dS = _read(dlast_momentum, bh, K, 0, BK, columns, V)
    for i in range(N):
        n = N - 1 - i
        row = bh + n * B * H
        opens = tl.load(opening + n * B + bh // H)
        _write(dafter_weights, dM, row, K, 0, BK, columns, V)
        _write(dafter_momentum, dS, row, K, 0, BK, columns, V)
        for c in range(0, C, BC):
            keys = _read(k, row, C, c, BC, channels, K)
            by_weights = tl.dot(keys, dM)
            by_momentum = tl.dot(keys, dS)
            _write(of_weights, by_weights, row, C, c, BC, columns, V)
            _write(of_momentum, by_momentum, row, C, c, BC, columns, V)
            dupdate = _numbers(to_weights, row, C, c, BC) * by_weights + _numbers(to_momentum, row, C, c, BC) * by_momentum
            dmissed = _read(derror, row, C, c, BC, columns, V) - 2 * _numbers(step, row, C, c, BC) * dupdate
            keys = _read(k, row, C, c, BC, channels, K)
            dW += tl.dot(tl.trans(keys), dmissed)
        dS = tl.load(fades + row) * dS + tl.load(enters + row) * dM + _read(dbefore_momentum, row, K, 0, BK, columns, V)
        dM = tl.load(keeps + row) * dM + _read(dbefore_weights, row, K, 0, BK, columns, V)
        if opens > 0:
            dM += dW
            dW = tl.zeros_like(dW)
        if opens == 2:
            _write(dinitial, dM + _read(dinitial, bh, K, 0, BK, columns, V), bh, K, 0, BK, columns, V)
            dM = tl.zeros_like(dM)
            dS = tl.zeros_like(dS)
    _write(dstart, dW, bh, K, 0, BK, columns, V)
    _write(dweights, dM, bh, K, 0, BK, columns, V)
    _write(dmomentum, dS, bh, K, 0, BK, columns, V)


def handed_on(
    k: Tensor,
    v: Tensor,
    step: Tensor,
    to_weights: Tensor,
    to_momentum: Tensor,
    keeps: Tensor,
    enters: Tensor,
    fades: Tensor,
    opening: Tensor,
    initial: Tensor,
    start: Tensor,
    weights: Tensor,
    momentum: Tensor,
) -> tuple[Tensor, ...]:
    """(M and S before each chunk `[N, B, H, K, V]`, errors k W - v `[N, B, H, C, V]`; W, M, S behind the last `[B, H, K, V]`).

    All are contiguous and float32, opening int32.

    Args:
        k, v, step: `[N, B, H, C, K]`, `[N, B, H, C, V]`, `[N, B, H, C]`. to_weights, to_momentum: the last rows of `chunk.py`'s
            W and E, alike. keeps, enters, fades: the last of its a, c and e, `[N, B, H]`.
        opening: `[N, B]`: 2 where a document begins with the chunk, 1 where only the chunk begins, 0 where neither does.
        initial: a document's weights before its first token; start, weights, momentum: a `naive.Memory`'s; `[B, H, K, V]`.
    """
    return _HandedOn.apply(k, v, step, to_weights, to_momentum, keeps, enters, fades, opening, initial, start, weights, momentum)


def _launch(kernel: Any, v: Tensor, k: Tensor, *tensors: Tensor) -> None:
    (N, B, H, C, K), V = k.shape, v.shape[-1]
    hopper = (capability(k) or (9, 0)) >= (9, 0)
    BK, wide = max(16, triton.next_power_of_2(K)), max(16, triton.next_power_of_2(V))
    blocks = {"BK": BK, "BV": min(64, wide, max(16, HELD // BK))}
    # warp groups multiply 64 rows at once, where there are any; else shorter ones spill less
    blocks["BC"] = min(64 if hopper else 32, max(16, triton.next_power_of_2(C)))
    # the next chunk's keys lie beside this one's, while both fit
    stages = 2 if K <= 128 else 1
    with torch.cuda.device_of(k):
        grid = (triton.cdiv(V, blocks["BV"]), B * H)
        kernel[grid](*tensors, N, B, H, C=C, K=K, V=V, **blocks, num_warps=WARPS, num_stages=stages)


class _HandedOn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, k, v, *rest):
        kept = rest[-1]
        before = [kept.new_empty(len(k), *kept.shape) for _ in range(2)]
        error, last = torch.empty_like(v), [torch.empty_like(kept) for _ in range(3)]
        _launch(_forward, v, k, k, v, *rest, *before, error, *last)
        ctx.save_for_backward(k, *rest[:7], rest[8], *before, error)
        return *before, error, *last

    @staticmethod
    def backward(ctx: Any, *douts):
        k, step, to_weights, to_momentum, keeps, enters, fades, opening, start, M, S, error = ctx.saved_tensors
        dbefore_weights, dbefore_momentum, derror, *dlast = (d.contiguous() for d in douts)
        dM, dS = torch.empty_like(M), torch.empty_like(S)
        by_weights, by_momentum = torch.empty_like(error), torch.empty_like(error)
        dinitial, dstate = torch.zeros_like(start), [torch.empty_like(start) for _ in range(3)]
        gates = (step, to_weights, to_momentum, keeps, enters, fades, opening)
        given = (dbefore_weights, dbefore_momentum, derror, *dlast)
        _launch(_backward, error, k, k, *gates, *given, dM, dS, by_weights, by_momentum, dinitial, *dstate)
        dupdate = to_weights[..., None] * by_weights + to_momentum[..., None] * by_momentum
        dstep = -2 * (error * dupdate).sum(-1)
        derror = torch.addcmul(derror, step[..., None], dupdate, value=-2)
        update = (-2 * step)[..., None] * error
        both = torch.cat([to_weights[..., None] * update, to_momentum[..., None] * update, derror], -1)
        dk = both @ torch.cat([dM, dS, M], -1).transpose(-1, -2)
        # a row may go on inside a chunk, whose errors are those of the weights it started from
        began = torch.where(opening[0, :, None, None, None] > 0, 0, start - M[0])
        dk[0] += derror[0] @ began.transpose(-1, -2)
        dkeeps, denters, dfades = (torch.einsum("nbhkv,nbhkv->nbh", x, dx) for x, dx in ((M, dM), (S, dM), (S, dS)))
        drates = (dstep, (update * by_weights).sum(-1), (update * by_momentum).sum(-1), dkeeps, denters, dfades)
        return dk, -derror, *drates, None, dinitial, *dstate
