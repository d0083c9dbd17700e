"""Fast weights moved by their own error, token by token: the definition (Titans, Behrouz et al., arXiv:2501.00663 eqs. 8-15).

    S_t = eta_t S_{t-1} - theta_t grad ||M(k_t) - v_t||^2     M_t = (1 - alpha_t) M_{t-1} + S_t     y_t = M_t(q_t)

A memory M is a stack of matrices per head: one is linear, M(x) = x W; between two or more stands SiLU (the paper leaves it open).
The gradient, factor 2 included, is taken at the weights that the token's chunk started from (sec. 3.2), so the chunk is part of
the model: chunks of C tokens count from the document's start, whatever a pass or a split holds. There the weights are the learned
initial ones and the momentum S is zero. With C = 1 and eta = 0 a linear memory is the gated delta rule (decay after the error).
States and sums are float32, or float64 when the streams are.

`context` is memory as a context (sec. 4.1, eqs. 21-25): an attention within segments whose keys the memory adds to.

    h_i = M'(query_i)      a_i = softmax attention of q_i on the segment's (k, v)_j and (k, v)(h_j), j <= i, and a fixed prefix
    M takes a_i in as above, k, v, q and rates being maps of a_i per head      m_i = M_i(q(a_i))

A segment is the memory's chunk, and M' are the weights it started from. Read literally, the equations leak the future inside a
segment twice: a token would see what later ones retrieved, and read a memory that has taken later ones in. Hence j <= i, and M_i.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from llm.ops.rotary import rotary
from llm.state import accumulator

Weights = tuple[Tensor, ...]


class Memory(NamedTuple):
    """What a memory carries, each part one `[B, H, in, out]` per matrix. Where in its chunk it is, the position tells.

    start: the weights that the last token's chunk started from. weights: those after the last token. momentum: S after it.
    """

    start: Weights
    weights: Weights
    momentum: Weights

    def to(self, dtype: torch.dtype) -> "Memory":
        return Memory(*(tuple(w.to(dtype) for w in part) for part in self))


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
    """(y `[B, T, H, V]` in v's dtype, the memory after the last token).

    Args:
        log_keep_BTH: log(1 - alpha) <= 0. log_momentum_BTH: log eta <= 0. step_BTH: theta >= 0. The logs are finite.
        initial: one `[H, in, out]` per matrix: a document's weights before its first token.
        position_BT: each token's position in its document; None: a document starts at the first token, and no other.
        chunk: tokens per chunk, C.
    """
    dtype = accumulator(v_BTHV.dtype)
    position_BT = counted(position_BT, v_BTHV)
    rates = (log_keep_BTH.to(dtype).exp(), log_momentum_BTH.to(dtype).exp(), step_BTH.to(dtype))
    streams = (q_BTHK.to(dtype), k_BTHK.to(dtype), v_BTHV.to(dtype), *(x[..., None, None] for x in rates))
    positions = position_BT[..., None, None, None]
    first, (start, weights, surprise) = tuple(w.to(dtype) for w in initial), state.to(dtype)
    outputs = []
    for q, k, v, kept, eta, theta, position in zip(*(x.unbind(1) for x in (*streams, positions)), strict=True):
        weights = tuple(torch.where(position == 0, w0, w) for w0, w in zip(first, weights, strict=True))
        surprise = tuple(torch.where(position == 0, 0, s) for s in surprise)
        start = tuple(torch.where(position % chunk == 0, w, s) for w, s in zip(weights, start, strict=True))
        surprise = tuple(eta * s - theta * g for s, g in zip(surprise, loss_gradient(start, k, v), strict=True))
        weights = tuple(kept * w + s for w, s in zip(weights, surprise, strict=True))
        outputs.append(apply(weights, q))
    return torch.stack(outputs, 1).to(v_BTHV.dtype), Memory(start, weights, surprise)


def counted(position_BT: Tensor | None, x_BTHV: Tensor) -> Tensor:
    """The positions, or those of one document that starts at the first token."""
    B, T = x_BTHV.shape[:2]
    return torch.arange(T, device=x_BTHV.device).expand(B, T) if position_BT is None else position_BT


def rates(gates: Tensor, step_max: float) -> tuple[Tensor, Tensor, Tensor]:
    """(log keep, log momentum, step) of the three gates' preactivations, which come first in `gates`.

    theta = step_max (1 - eta) sigmoid(.): as sum_s (1 - eta_s) eta_{s+1} ... eta_t <= 1, the momentum is an average of gradients
    with weights of at most step_max, however the rates vary.
    """
    keep, momentum, step = gates
    log_momentum = F.logsigmoid(momentum)
    return F.logsigmoid(keep), log_momentum, step_max * (1 - log_momentum.exp()) * step.sigmoid()


def apply(weights: Weights, x_BHK: Tensor) -> Tensor:
    """M(x): `[B, H, V]`."""
    for w in weights[:-1]:
        x_BHK = F.silu(torch.einsum("bhi,bhio->bho", x_BHK, w))
    return torch.einsum("bhi,bhio->bho", x_BHK, weights[-1])


def loss_gradient(weights: Weights, k_BHK: Tensor, v_BHV: Tensor) -> Weights:
    """The gradient of ||M(k) - v||^2 in each matrix."""
    inputs, slopes = [k_BHK], []
    for w in weights[:-1]:
        sums = torch.einsum("bhi,bhio->bho", inputs[-1], w)
        inputs.append(F.silu(sums))
        slopes.append(silu_slope(sums))
    error = 2 * (torch.einsum("bhi,bhio->bho", inputs[-1], weights[-1]) - v_BHV)
    gradients = [inputs[-1][..., :, None] * error[..., None, :]]
    for w, x, slope in zip(weights[:0:-1], inputs[-2::-1], slopes[::-1], strict=True):
        error = torch.einsum("bho,bhio->bhi", error, w) * slope
        gradients.append(x[..., :, None] * error[..., None, :])
    return tuple(gradients[::-1])


def silu_slope(x: Tensor) -> Tensor:
    """The derivative of SiLU."""
    gate = x.sigmoid()
    return gate * (1 + x * (1 - gate))


class Context(NamedTuple):
    """What memory as a context carries: the memory, and keys and values of the segment, `[B, C, 2, H, *]`.

    A token's place in them is its place in its segment; of the two, the first is what it retrieved, the second its own.
    """

    memory: Memory
    k: Tensor
    v: Tensor


class Maps(NamedTuple):
    """The maps per head of memory as a context, `[H, out, in]`.

    retrieved: a retrieved value to its key and value. memorised: an attention's output to query, key and value of the memory;
    query and key pass through SiLU to unit length, the value through SiLU. rates: to the preactivations of `rates`, bias `[H, 3]`.
    """

    retrieved: Tensor
    memorised: Tensor
    rates: Tensor
    rate_bias: Tensor

    def to_attention(self, h_BTHV: Tensor, key: int) -> tuple[Tensor, Tensor]:
        """(k, v) of retrieved values."""
        k, v = torch.einsum("bthi,hoi->btho", h_BTHV, self.retrieved.to(h_BTHV.dtype)).tensor_split((key,), -1)
        return k, v

    def to_memory(self, a_BTHV: Tensor, key: int, step_max: float, dtype: torch.dtype) -> list[Tensor]:
        """q, k, v and the rates of an attention's outputs, in `dtype`."""
        streams = torch.einsum("bthi,hoi->btho", a_BTHV, self.memorised.to(a_BTHV.dtype)).to(dtype)
        q, k, v = F.silu(streams).tensor_split((key, 2 * key), -1)
        gates = torch.einsum("bthi,hgi->bthg", a_BTHV, self.rates.to(a_BTHV.dtype)).to(dtype) + self.rate_bias.to(dtype)
        return [F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, *rates(gates.movedim(-1, 0), step_max)]


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
) -> tuple[Tensor, Tensor, Context]:
    """(a, m, both `[B, T, H, V]` in v's dtype, what to carry on).

    Args:
        query_BTHK: what the memory is asked before the attention. initial, position_BT, chunk: as in `memory`.
        theta: of rotary positions in the segment, of queries and both kinds of keys; None: no positions.
        prefix: keys and values `[n, H, *]` of no token, which every query sees.
    """
    dtype = accumulator(v_BTHV.dtype)
    position_BT = counted(position_BT, v_BTHV)
    first, K = tuple(w.to(dtype) for w in initial), q_BTHK.shape[-1]
    (memory_state, k_cache, v_cache), slots = state, torch.arange(chunk, device=v_BTHV.device)
    attended, read = [], []
    for t in range(v_BTHV.shape[1]):
        q, k, v, query, position = (x[:, t : t + 1] for x in (q_BTHK, k_BTHK, v_BTHV, query_BTHK, position_BT))
        slot = position % chunk
        begins, opens = ((x == 0)[..., None, None] for x in (position, slot))
        weights = tuple(torch.where(begins, w0, w) for w0, w in zip(first, memory_state.weights, strict=True))
        start = tuple(torch.where(opens, w, s) for w, s in zip(weights, memory_state.start, strict=True))
        h_k, h_v = maps.to_attention(apply(start, query[:, 0].to(dtype))[:, None].to(v.dtype), K)
        if theta is not None:
            q, k, h_k = (rotary(x, slot, theta) for x in (q, k, h_k))
        here = (slots == slot)[..., None, None, None]
        k_cache, v_cache = (
            torch.where(here, torch.stack([of_h, own], 2), torch.where(opens[..., None], 0, cache))
            for of_h, own, cache in ((h_k, k, k_cache), (h_v, v, v_cache))
        )
        seen = (slots <= slot).repeat_interleave(2, -1)
        keys, values = k_cache.flatten(1, 2), v_cache.flatten(1, 2)
        if prefix is not None:
            keys, values = (
                torch.cat([p.to(x.dtype).expand(len(x), *p.shape), x], 1) for p, x in zip(prefix, (keys, values), strict=True)
            )
            seen = F.pad(seen, (len(prefix[0]), 0), value=True)
        score_BHS = scale * torch.einsum("bhk,bshk->bhs", q[:, 0], keys)
        weight_BHS = score_BHS.masked_fill(~seen[:, None], -torch.inf).softmax(-1)
        a = torch.einsum("bhs,bshv->bhv", weight_BHS, values)[:, None]
        asked, k, v, log_keep, log_momentum, step = maps.to_memory(a, K, step_max, dtype)
        m, memory_state = memory(asked, k, v, log_keep, log_momentum, step, initial, memory_state, position, chunk=chunk)
        attended.append(a)
        read.append(m.to(a.dtype))
    return torch.cat(attended, 1), torch.cat(read, 1), Context(memory_state, k_cache, v_cache)
