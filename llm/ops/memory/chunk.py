"""Fast weights moved by their own error, in chunks of C tokens: the fast PyTorch form. Definition: `naive.py`.

Inside a chunk all gradients are taken at the same weights W, so the updates of one matrix with inputs x_s (k_s for the first) are
x_s^T u_s with u_s known at once: -2 theta_s (x_s W - v_s) in a linear memory, the backpropagated error below the last matrix
(Titans, arXiv:2501.00663 sec. 3.2). Two decays then act one after the other:

    S_t = e_t S_in + sum_{s <= t} E[t, s] x_s^T u_s          E[t, s] = eta_{s+1} ... eta_t,  e_t = eta_1 ... eta_t
    M_t = a_t M_in + c_t S_in + sum_{s <= t} W[t, s] x_s^T u_s        A[t, r] = (1 - alpha_{r+1}) ... (1 - alpha_t)
    W = A E,  c = A e:  an update enters the momentum at s, the weights at every r from s to t, and is forgotten from there on

The product of two matrices of numbers in [0, 1] has neither a difference nor a quotient: nothing cancels or overflows, also where
eta = 1 - alpha, the pole of the closed form. Chunk after chunk only M, S and the errors are handed on; reads are batched.

Chunks count from documents' starts, so tokens are first re-laid into whole chunks: `layout.py`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from llm.ops.memory.layout import Layout, chunked, full, joined, layout
from llm.ops.memory.naive import Memory, Weights, silu_slope
from llm.state import accumulator


def memory(
    q_BTHK: Tensor,
    k_BTHK: Tensor,
    v_BTHV: Tensor,
    log_keep_BTH: Tensor,
    log_momentum_BTH: Tensor,
    step_BTH: Tensor,
    initial: Weights,
    state: Memory,
    position_BT: Tensor | None = None,
    *,
    chunk: int,
    chunks: int | None = None,
    handed_on: Callable[..., tuple[Memory, Memory, list["Written"]]] | None = None,
) -> tuple[Tensor, Memory]:
    """(y `[B, T, H, V]` in v's dtype, the memory after the last token). Arguments: as in `naive.memory`, and `layout`'s chunks.

    handed_on: what runs in place of `in_turn`.
    """
    dtype = accumulator(v_BTHV.dtype)
    B, T = v_BTHV.shape[:2]
    placed = None if position_BT is None else layout(position_BT, chunk, chunks)
    streams = (x.to(dtype) for x in (q_BTHK, k_BTHK, v_BTHV, log_keep_BTH, log_momentum_BTH, step_BTH))
    q, k, v, log_keep, log_momentum, step = (chunked(x, placed, chunk) for x in streams)
    mixing = mixing_of(log_keep, log_momentum, full(placed, T, chunk, v.device))
    initial, state = tuple(w.to(dtype).expand(B, *w.shape) for w in initial), state.to(dtype)
    final, before, written = (handed_on or in_turn)(k, v, step, mixing, initial, state, placed)
    x = q
    for layer, updates in enumerate(written):
        x = F.silu(x) if layer else x
        x = read(x, updates, before.weights[layer], before.momentum[layer], mixing)
    return joined(x, placed, T).to(v_BTHV.dtype), final


class Ends(NamedTuple):
    """How much of what lies in a chunk's last weights and momentum, `[..., B, H, *, *]`."""

    pairs: Tensor  # [..., C, 2] the last rows of W and E
    weights: Tensor  # [..., 1, 1] the last of a
    momentum: Tensor  # [..., 1, 1] the last of c
    kept: Tensor  # [..., 1, 1] the last of e


class Mixing(NamedTuple):
    """How much of what lies in token t's weights and momentum, `[..., B, H, C, *]`; see the module's docstring."""

    pairs: Tensor  # [..., C, C] W
    weights: Tensor  # [..., C] a
    momentum: Tensor  # [..., C] c
    ends: Ends


def mixing_of(log_keep: Tensor, log_momentum: Tensor, full: Tensor) -> Mixing:
    C = log_keep.shape[-1]
    lower = log_keep.new_ones(C, C).tril()
    keep, momentum = log_keep.cumsum(-1), log_momentum.cumsum(-1)
    # above the diagonal stand positive sums, whose exp could overflow; on it 0, whose gradients would only leave rounding
    A, E = ((b[..., :, None] - b[..., None, :]).tril(-1).exp() * lower for b in (keep, momentum))
    e = momentum.exp()
    both = (A * full[..., None, :]) @ torch.cat([E, e[..., None]], -1)
    pairs, enters, kept = both[..., :C], both[..., C], keep.exp()
    ends = (kept[..., -1], enters[..., -1], e[..., -1])
    return Mixing(
        pairs, kept, enters, Ends(torch.stack([pairs[..., -1, :], E[..., -1, :]], -1), *(x[..., None, None] for x in ends))
    )


class Written(NamedTuple):
    """What a chunk's tokens write into one matrix: inputs `[..., B, H, C, in]` and updates `[..., B, H, C, out]`."""

    inputs: Tensor
    updates: Tensor


def in_turn(
    k: Tensor, v: Tensor, step: Tensor, mixing: Mixing, initial: Weights, state: Memory, placed: Layout | None
) -> tuple[Memory, Memory, list[Written]]:
    """(the final memory, the memory before each chunk, what each chunk writes per matrix), chunk after chunk."""
    memory, before, written = state, [], []
    # unbound at once: the gradient of x[n] would fill a tensor as large as x for every chunk
    chunks = zip(*(x.unbind(0) for x in (k, v, step, *mixing.ends)), strict=True)
    for n, (k_n, v_n, step_n, *ends) in enumerate(chunks):
        memory = opened(n, initial, memory, placed)
        before.append((*memory.weights, *memory.momentum))
        parts = errors(memory.start, k_n, v_n, step_n)
        written.append([x for part in parts for x in part])
        memory = after(parts, Ends(*ends), memory)
    L = len(initial)
    stacked = [torch.stack(x) for x in zip(*before, strict=True)]
    columns = [torch.stack(x) for x in zip(*written, strict=True)]
    return (
        memory,
        Memory((), tuple(stacked[:L]), tuple(stacked[L:])),
        [Written(*columns[2 * i : 2 * i + 2]) for i in range(L)],
    )


def opened(n: int, initial: Weights, memory: Memory, placed: Layout | None) -> Memory:
    """The memory as chunk n finds it: a document's is the initial one; `start` is new where the first slot is a token's."""
    start, weights, momentum = memory
    if placed is None:
        return Memory(initial, initial, tuple(map(torch.zeros_like, initial))) if n == 0 else Memory(weights, weights, momentum)
    begins, opens = (at[n, :, None, None, None] for at in (placed.begins_NB, placed.opens_NB))
    weights, momentum = _restarted(begins, initial, weights, momentum)
    return Memory(tuple(torch.where(opens, w, s) for w, s in zip(weights, start, strict=True)), weights, momentum)


def _restarted(begins: Tensor, initial: Weights, weights: Weights, momentum: Weights) -> tuple[Weights, Weights]:
    """Weights and momentum, in rows where a document begins those it begins with."""
    return (
        tuple(torch.where(begins, w0, w) for w0, w in zip(initial, weights, strict=True)),
        tuple(torch.where(begins, 0, s) for s in momentum),
    )


def errors(start: Weights, k: Tensor, v: Tensor, step: Tensor) -> list[Written]:
    """What a chunk whose gradients are taken at `start` writes into each matrix."""
    inputs, slopes = [k], []
    for w in start[:-1]:
        sums = inputs[-1] @ w
        inputs.append(F.silu(sums))
        slopes.append(silu_slope(sums))
    updates = [(-2 * step)[..., None] * (inputs[-1] @ start[-1] - v)]
    for w, slope in zip(start[:0:-1], slopes[::-1], strict=True):
        updates.append((updates[-1] @ w.transpose(-1, -2)) * slope)
    return [Written(*part) for part in zip(inputs, updates[::-1], strict=True)]


def after(written: list[Written], ends: Ends, memory: Memory) -> Memory:
    """The memory after a chunk."""
    both = [x.transpose(-1, -2) @ torch.cat([u * ends.pairs[..., :1], u * ends.pairs[..., 1:]], -1) for x, u in written]
    to_weights, to_momentum = zip(*(x.chunk(2, -1) for x in both), strict=True)
    faded = [ends.weights * w + ends.momentum * s for w, s in zip(memory.weights, memory.momentum, strict=True)]
    return Memory(
        memory.start,
        tuple(w + more for w, more in zip(faded, to_weights, strict=True)),
        tuple(ends.kept * s + more for s, more in zip(memory.momentum, to_momentum, strict=True)),
    )


def read(x: Tensor, written: Written, weights: Tensor, momentum: Tensor, mixing: Mixing) -> Tensor:
    """x_t through one matrix as it stands after token t, `[..., B, H, C, out]`, in all chunks at once."""
    inside = ((x @ written.inputs.transpose(-1, -2)) * mixing.pairs) @ written.updates
    return mixing.weights[..., None] * (x @ weights) + mixing.momentum[..., None] * (x @ momentum) + inside
