"""Fast weights moved by their own error, in chunks of C tokens: the fast PyTorch form. Definition: `naive.py`.

Inside a chunk all gradients are taken at the same weights W, so the updates of one matrix with inputs x_s (k_s for the first) are
x_s^T u_s with u_s known at once: -2 theta_s (x_s W - v_s) in a linear memory, the backpropagated error below the last matrix
(Titans, arXiv:2501.00663 sec. 3.2). Two decays then act one after the other:

    S_t = e_t S_in + sum_{s <= t} E[t, s] x_s^T u_s          E[t, s] = eta_{s+1} ... eta_t,  e_t = eta_1 ... eta_t
    M_t = a_t M_in + c_t S_in + sum_{s <= t} W[t, s] x_s^T u_s        A[t, r] = (1 - alpha_{r+1}) ... (1 - alpha_t)
    W = A E,  c = A e:  an update enters the momentum at s, the weights at every r from s to t, and is forgotten from there on

The product of two matrices of numbers in [0, 1] has neither a difference nor a quotient: nothing cancels or overflows, also where
eta = 1 - alpha, the pole of the closed form. Chunk after chunk only M, S and the errors are handed on; reads are batched.

Chunks count from documents' starts, so tokens are re-laid into whole chunks (`layout`): every document's last chunk, and the
pass's first and last, may hold empty slots, which change nothing. `padding` says how many.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from llm.ops.memory.naive import Memory, Weights, silu_slope
from llm.state import accumulator


class Layout(NamedTuple):
    """Where tokens stand among N whole chunks.

    slot_BT: each token's place in N * C. token_BS: the token in each place, any one in an empty one. full_NBC: which places hold
    a token. opens_NB: the chunk's first place does: it starts from the weights it finds. begins_NB: a document starts there.
    """

    chunks: int
    slot_BT: Tensor
    token_BS: Tensor
    full_NBC: Tensor
    opens_NB: Tensor
    begins_NB: Tensor


def layout(position_BT: Tensor, chunk: int) -> Layout:
    """Of tokens at these positions in their documents. Reads one number, the chunks needed, from the host."""
    B, T = position_BT.shape
    opens_BT = position_BT % chunk == 0
    number_BT = opens_BT.long().cumsum(1) - opens_BT[:, :1].long()
    N = int(number_BT[:, -1].max()) + 1
    slot_BT = number_BT * chunk + position_BT % chunk
    empty = slot_BT.new_full((B, N * chunk), -1)
    token_BS = empty.scatter(1, slot_BT, torch.arange(T, device=slot_BT.device).expand(B, T))
    full_NBC = (token_BS >= 0).view(B, N, chunk).transpose(0, 1)
    token_BS = token_BS.clamp(min=0)
    first_NB = token_BS.view(B, N, chunk)[..., 0].T
    opens_NB = full_NBC[..., 0]
    begins_NB = opens_NB & (position_BT.gather(1, first_NB.T).T == 0)
    return Layout(N, slot_BT, token_BS, full_NBC, opens_NB, begins_NB)


def padding(position_BT: Tensor, chunk: int) -> float:
    """Empty slots per token: the share of work that the layout of these documents adds."""
    return layout(position_BT, chunk).full_NBC.numel() / position_BT.numel() - 1


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
) -> tuple[Tensor, Memory]:
    """(y `[B, T, H, V]` in v's dtype, the memory after the last token). Arguments: as in `naive.memory`."""
    dtype = accumulator(v_BTHV.dtype)
    B, T = v_BTHV.shape[:2]
    placed = None if position_BT is None else layout(position_BT, chunk)
    streams = (x.to(dtype) for x in (q_BTHK, k_BTHK, v_BTHV, log_keep_BTH, log_momentum_BTH, step_BTH))
    q, k, v, log_keep, log_momentum, step = (_chunked(x, placed, chunk) for x in streams)
    mixing = _mixing(log_keep, log_momentum, _full(placed, T, chunk, v.device))
    initial, state = tuple(w.to(dtype).expand(B, *w.shape) for w in initial), state.to(dtype)
    final, before, written = _handed_on(k, v, step, mixing, initial, state, placed)
    x = q
    for layer, updates in enumerate(written):
        x = F.silu(x) if layer else x
        x = _read(x, updates, before.weights[layer], before.momentum[layer], mixing)
    return _joined(x, placed, T).to(v_BTHV.dtype), final


def _chunked(x_BTHx: Tensor, placed: Layout | None, chunk: int) -> Tensor:
    """`[B, T, H, ...]` -> `[N, B, H, C, ...]`, with zeros in empty slots."""
    B, T = x_BTHx.shape[:2]
    if placed is None:
        N = -(-T // chunk)
        x = F.pad(x_BTHx, (0, 0) * (x_BTHx.ndim - 2) + (0, N * chunk - T))
    else:
        N = placed.chunks
        rows = placed.token_BS + T * torch.arange(B, device=x_BTHx.device)[:, None]
        x = x_BTHx.flatten(0, 1).index_select(0, rows.flatten()).view(B, N * chunk, *x_BTHx.shape[2:])
    x = x.view(B, N, chunk, *x_BTHx.shape[2:]).movedim((1, 3), (0, 2))
    if placed is not None:
        full = placed.full_NBC[:, :, None]
        x = torch.where(full if x.ndim == 4 else full[..., None], x, 0)
    return x.contiguous()


def _joined(x_NBHCV: Tensor, placed: Layout | None, T: int) -> Tensor:
    """The inverse of `_chunked`: `[B, T, H, V]`."""
    x = x_NBHCV.movedim((0, 2), (1, 3)).flatten(1, 2)
    if placed is None:
        return x[:, :T]
    B, S = x.shape[:2]
    rows = placed.slot_BT + S * torch.arange(B, device=x.device)[:, None]
    return x.flatten(0, 1).index_select(0, rows.flatten()).view(B, T, *x.shape[2:])


def _full(placed: Layout | None, T: int, chunk: int, device: torch.device) -> Tensor:
    """bool `[N, B or 1, 1, C]`: the slots that hold a token."""
    if placed is not None:
        return placed.full_NBC[:, :, None]
    return (torch.arange(-(-T // chunk) * chunk, device=device) < T).view(-1, 1, 1, chunk)


class _Mixing(NamedTuple):
    """How much of what lies in token t's weights and momentum, `[N, B, H, C, ...]`; see the module's docstring."""

    pairs: Tensor  # [..., C, C] W
    weights: Tensor  # [..., C] a
    momentum: Tensor  # [..., C] c
    end_pairs: Tensor  # [..., C, 2] the last rows of W and E
    end_momentum: Tensor  # [...] the last of e


def _mixing(log_keep: Tensor, log_momentum: Tensor, full: Tensor) -> _Mixing:
    C = log_keep.shape[-1]
    lower = log_keep.new_ones(C, C).tril()
    keep, momentum = log_keep.cumsum(-1), log_momentum.cumsum(-1)
    # above the diagonal stand positive sums, whose exp could overflow; on it 0, whose gradients would only leave rounding
    A, E = ((b[..., :, None] - b[..., None, :]).tril(-1).exp() * lower for b in (keep, momentum))
    e = momentum.exp()
    both = (A * full[..., None, :]) @ torch.cat([E, e[..., None]], -1)
    pairs = both[..., :C]
    return _Mixing(pairs, keep.exp(), both[..., C], torch.stack([pairs[..., -1, :], E[..., -1, :]], -1), e[..., -1])


class _Written(NamedTuple):
    """What a chunk's tokens write into one matrix: inputs `[N, B, H, C, in]` and updates `[N, B, H, C, out]`."""

    inputs: Tensor
    updates: Tensor


def _handed_on(
    k: Tensor, v: Tensor, step: Tensor, mixing: _Mixing, initial: Weights, state: Memory, placed: Layout | None
) -> tuple[Memory, Memory, list[_Written]]:
    """(the final memory, the memory before each chunk, what each chunk writes per matrix), chunk after chunk."""
    start, weights, momentum = state
    before, written = [], []
    at_end = [x[..., None, None] for x in (mixing.weights[..., -1], mixing.momentum[..., -1], mixing.end_momentum)]
    # unbound at once: the gradient of x[n] would fill a tensor as large as x for every chunk
    chunks = zip(*(x.unbind(0) for x in (k, v, step, mixing.end_pairs, *at_end)), strict=True)
    for n, (k_n, v_n, step_n, ends, keep, enters, kept) in enumerate(chunks):
        if placed is not None:
            begins, opens = (at[n, :, None, None, None] for at in (placed.begins_NB, placed.opens_NB))
            weights, momentum = _restarted(begins, initial, weights, momentum)
            start = tuple(torch.where(opens, w, s) for w, s in zip(weights, start, strict=True))
        else:
            if n == 0:
                weights, momentum = initial, tuple(torch.zeros_like(w) for w in initial)
            start = weights
        before.append((*weights, *momentum))
        parts = _errors(start, k_n, v_n, step_n)
        written.append([x for part in parts for x in part])
        sums = [x.transpose(-1, -2) @ torch.cat([u * ends[..., :1], u * ends[..., 1:]], -1) for x, u in parts]
        halves = [x.chunk(2, -1) for x in sums]
        weights, momentum = (
            tuple(keep * w + enters * s + add for w, s, (add, _) in zip(weights, momentum, halves, strict=True)),
            tuple(kept * s + add for s, (_, add) in zip(momentum, halves, strict=True)),
        )
    L = len(weights)
    stacked = [torch.stack(x) for x in zip(*before, strict=True)]
    columns = [torch.stack(x) for x in zip(*written, strict=True)]
    return (
        Memory(start, weights, momentum),
        Memory((), tuple(stacked[:L]), tuple(stacked[L:])),
        [_Written(*columns[2 * i : 2 * i + 2]) for i in range(L)],
    )


def _restarted(begins: Tensor, initial: Weights, weights: Weights, momentum: Weights) -> tuple[Weights, Weights]:
    """Weights and momentum, in rows where a document begins those it begins with."""
    return (
        tuple(torch.where(begins, w0, w) for w0, w in zip(initial, weights, strict=True)),
        tuple(torch.where(begins, 0, s) for s in momentum),
    )


def _errors(start: Weights, k: Tensor, v: Tensor, step: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Inputs and updates of each matrix, for a chunk whose gradients are taken at `start`."""
    inputs, slopes = [k], []
    for w in start[:-1]:
        sums = inputs[-1] @ w
        inputs.append(F.silu(sums))
        slopes.append(silu_slope(sums))
    updates = [(-2 * step)[..., None] * (inputs[-1] @ start[-1] - v)]
    for w, slope in zip(start[:0:-1], slopes[::-1], strict=True):
        updates.append((updates[-1] @ w.transpose(-1, -2)) * slope)
    return list(zip(inputs, updates[::-1], strict=True))


def _read(x: Tensor, written: _Written, weights: Tensor, momentum: Tensor, mixing: _Mixing) -> Tensor:
    """x_t through one matrix as it stands after token t, `[N, B, H, C, out]`, in all chunks at once."""
    inside = ((x @ written.inputs.transpose(-1, -2)) * mixing.pairs) @ written.updates
    return mixing.weights[..., None] * (x @ weights) + mixing.momentum[..., None] * (x @ momentum) + inside
