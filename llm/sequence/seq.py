"""`Seq`: a mixer's only window on other tokens.

One method per operation. Each takes the state of that name, keeps documents apart, picks the implementation and leaves the new
state, so that isolation and carrying are written here once and never in a mixer.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llm.docs import Docs, Stretch
from llm.ops import dispatch, rotary
from llm.ops.attention.tiles import Scores
from llm.ops.linear import summary as linear_summary
from llm.ops.linear.naive import discretised
from llm.ops.memory.naive import Context, Maps, Memory
from llm.ops.recurrent.cells import CELLS
from llm.ops.rotary import RopeScaling
from llm.ops.scan import summary as scan_summary
from llm.ops.scan.naive import exact
from llm.parallel import Ranks, crossing
from llm.parallel import attention as across
from llm.parallel.crossing import ByState, Call, Crossed
from llm.parallel.plan import Op
from llm.state import State, accumulator


class Seq:
    """One pass of one mixer over `[B, T]` tokens.

    Args:
        state: the incoming state, with every entry of the mixer's spec; the same on all ranks of a sequence.
        fresh: whether that state is the initial one, behind which no token lies.
        docs: where documents start in the whole sequence; None: nowhere.
        tokens: T, of this rank. ranks: those that the sequence is split over; None: it is not.
    """

    def __init__(self, state: State, fresh: bool, docs: Docs | None, tokens: int, ranks: Ranks | None = None):
        self.state = state
        self.tokens = tokens
        self.ranks = None if ranks is None or ranks.size == 1 else ranks
        first, whole = (0, tokens) if self.ranks is None else (self.ranks.rank * tokens, self.ranks.size * tokens)
        assert docs is None or docs.shape[1] == whole, f"documents of {docs.shape[1]} tokens for a sequence of {whole}"
        self.here = Stretch(docs, state["position"], first, tokens, fresh, part=self.ranks is not None)
        self.whole = Stretch(docs, state["position"], 0, whole, fresh)
        self.new_state: State = {"position": self.whole.position_BT[:, -1] + 1}
        self.ops: list[Op] = []

    def rotary(
        self, *streams_BTHK: Tensor, theta: float, channels: int | None = None, scaling: RopeScaling | None = None
    ) -> tuple[Tensor, ...]:
        """Rotary position embedding of each stream, or of its first `channels`, by positions in the document."""
        (first, *_) = streams_BTHK
        table = rotary.angles(self.here.position_BT, channels or first.shape[-1], theta, scaling, accumulator(first.dtype))
        return tuple(rotary.turned(x, *table) for x in streams_BTHK)

    def conv(self, name: str, x_BTD: Tensor, weight_DW: Tensor, bias_D: Tensor | None = None) -> Tensor:
        """Short causal depthwise convolution: `[B, T, D]`."""
        tail = self.state[name].to(x_BTD.dtype)
        # a pinned bias is float32 under bfloat16 streams
        weights = weight_DW.to(x_BTD.dtype), None if bias_D is None else bias_D.to(x_BTD.dtype)

        def run(tokens, per_head, state, stretch):
            y, after = dispatch.run("conv", stretch.tokens, *tokens, *weights, *state, at=stretch)
            return (y,), (after,)

        call = Call(x_BTD.shape[-1], (x_BTD,), (), (tail,), (2,), run)
        if self.ranks is None:
            (y,), (self.new_state[name],) = self._alone(crossing.op_of(name, "conv", call, tail.shape[1]), call)
            return y
        taps = tail.shape[1]
        assert taps <= self.tokens, f"{taps} tokens of a convolution's tail from a rank that holds {self.tokens}"
        own = x_BTD[:, self.tokens - taps :] * self.here.in_last_BT(x_BTD)[:, self.tokens - taps :, None]
        (y,), (self.new_state[name],) = crossing.by_halo(call, self.ranks, self.here, (own,))
        return y

    def attention(
        self,
        name: str,
        q_BTHK: Tensor,
        k_BTGK: Tensor,
        v_BTGV: Tensor,
        *,
        window: int | None = None,
        scale: float | None = None,
        prefix: tuple[Tensor, Tensor] | None = None,
        soft_cap: float | None = None,
    ) -> Tensor:
        """Causal softmax attention `[B, T, H, V]`; the window counts the token itself; scale is K^-1/2 unless given.

        `prefix`: keys and values `[n, G, *]` of no token, which every query sees. `soft_cap` c: scores are c tanh(score / c).
        """
        scale = q_BTHK.shape[-1] ** -0.5 if scale is None else scale
        scores = Scores(window, scale, soft_cap)
        keys = [f"{name}.{part}" for part in ("k", "v", "valid")]
        cache = tuple(self.state[key] for key in keys)
        cache = (cache[0].to(k_BTGK.dtype), cache[1].to(v_BTGV.dtype), cache[2])
        if self.whole.fresh:
            cache = tuple(x[:, :0] for x in cache)
        fixed = () if prefix is None else tuple(x.transpose(0, 1) for x in prefix)

        def run(tokens, per_head, state, stretch):
            (q, k, v), (k_past, v_past, valid) = tokens, state
            k, v = torch.cat([k_past, k], 1), torch.cat([v_past, v], 1)
            shared = tuple(x.transpose(0, 1) for x in per_head) or None
            y = dispatch.run("attention", stretch.tokens, q, k, v, valid, at=stretch, prefix=shared, **scores._asdict())
            return (y,), across.cache(k, v, valid, stretch, window)

        call = Call(q_BTHK.shape[2], (q_BTHK, k_BTGK, v_BTGV), fixed, cache, (2, 2, None), run)
        op = crossing.op_of(name, "attention", call, None if window is None else window - 1)
        if self.ranks is None:
            (y,), after = self._alone(op, call)
        else:
            y, after = across.cross(op, call, self.ranks, self.here, self.whole, scores)
        self.new_state |= dict(zip(keys, after, strict=True))
        return y

    def linear(
        self,
        name: str,
        q_BTGK: Tensor,
        k_BTGK: Tensor,
        v_BTHV: Tensor,
        log_decay: Tensor,
        *,
        scale: float = 1.0,
        step_BTH: Tensor | None = None,
    ) -> Tensor:
        """Gated linear recurrence S_t = exp(log_decay_t) S_{t-1} + k_t v_t^T, y_t = scale q_t S_t: `[B, T, H, V]`.

        Queries and keys may come in G groups, G dividing H. `log_decay` is `[H]`, `[B, T, H]` or `[B, T, H, K]`, <= 0. With a
        `step` it is `[H]`, the rate of a discretised state space: log_decay step_t and step_t v_t take the places of the two.
        """
        fixed = log_decay.ndim == 1
        assert step_BTH is None or (fixed and scale == 1)
        streams = (q_BTGK, k_BTGK, v_BTHV)
        tokens = (*streams, step_BTH) if step_BTH is not None else streams if fixed else (*streams, log_decay)
        family = "linear" if step_BTH is None else "ssd"
        settings: dict[str, Any] = {"scale": scale} if step_BTH is None else {}

        def run(tokens, per_head, state, stretch):
            y, after = dispatch.run(family, stretch.tokens, *tokens, *per_head, *state, at=stretch, **settings)
            return (y,), (after,)

        state = self.state[name].to(accumulator(v_BTHV.dtype))
        call = Call(v_BTHV.shape[2], tokens, (log_decay,) if fixed else (), (state,), (1,), run)

        def by_state(ranks):
            v, decay = (v_BTHV, log_decay) if step_BTH is None else discretised(v_BTHV, step_BTH, log_decay)
            summary = linear_summary.linear(k_BTGK, v, decay, self.here.starts_BT)
            return crossing.by_state(call, ranks, self.here, summary, linear_summary.compose_linear)

        transition = call.heads * (k_BTGK.shape[-1] if log_decay.ndim == 4 else 1)
        (y,), (self.new_state[name],) = self._cross(name, "linear", call, transition, by_state)
        return y

    def scan(self, name: str, u_BTD: Tensor, dt_BTD: Tensor, A_DN: Tensor, B_BTGN: Tensor, C_BTGN: Tensor) -> Tensor:
        """Selective scan h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t, y_t = Re(C_t . h_t): `[B, T, D]`.

        dt >= 0, the real part of A <= 0; G divides D. A, B and C may be complex where the state is.
        """

        def run(tokens, per_head, state, stretch):
            (u, dt, B, C), (A,) = tokens, per_head
            y, after = dispatch.run("scan", stretch.tokens, u, dt, A, B, C, *state, at=stretch)
            return (y,), (after,)

        (_, state) = exact(u_BTD, self.state[name])
        call = Call(u_BTD.shape[2], (u_BTD, dt_BTD, B_BTGN, C_BTGN), (A_DN,), (state,), (1,), run)

        starts_BT, A = self.here.starts_BT, A_DN.detach()

        def by_state(ranks):
            through = scan_summary.steps(dt_BTD.detach(), starts_BT)

            def asked(dy):
                streams = dt_BTD.detach(), A, C_BTGN.detach(), state.detach(), starts_BT
                return dispatch.run("scan adjoint", self.tokens, dy, *streams)

            return crossing.by_adjoint(call, ranks, self.here, through, lambda x: scan_summary.fading(x, A), asked)

        (y,), (self.new_state[name],) = self._cross(name, "scan", call, call.heads, by_state)
        return y

    def elementwise(self, name: str, x_BTD: Tensor, decay_BTD: Tensor) -> Tensor:
        """The recurrence h_t = a_t h_{t-1} + x_t per channel, real or, where the state is, complex: `[B, T, D]`. |a| <= 1."""

        def run(tokens, per_head, state, stretch):
            h, after = dispatch.run("elementwise", stretch.tokens, *tokens, *state, at=stretch)
            return (h,), (after,)

        (_, state) = exact(x_BTD, self.state[name])
        call = Call(x_BTD.shape[2], (x_BTD, decay_BTD), (), (state,), (1,), run)

        decay, starts_BT = decay_BTD.detach(), self.here.starts_BT

        def by_state(ranks):
            through = scan_summary.product(decay, starts_BT)
            return crossing.by_adjoint(
                call, ranks, self.here, through, lambda a: a, lambda dh: scan_summary.elementwise_adjoint(dh, decay, starts_BT)
            )

        (h,), (self.new_state[name],) = self._cross(name, "elementwise", call, call.heads, by_state)
        return h

    def recurrent(self, name: str, cell: str, x_BTHMV: Tensor, R_HMVV: Tensor, bias_HMV: Tensor) -> Tensor:
        """A cell of `llm/ops/recurrent/cells.py` on its M gates' preactivations and h R + b of its last output: `[B, T, H, V]`."""
        keys = [f"{name}.{part}" for part in CELLS[cell].states]
        state = tuple(self.state[key].to(accumulator(x_BTHMV.dtype)) for key in keys)

        def run(tokens, per_head, state, stretch):
            h, after = dispatch.run("recurrent", stretch.tokens, *tokens, *per_head, state, at=stretch, cell=cell)
            return (h,), after

        call = Call(x_BTHMV.shape[2], (x_BTHMV,), (R_HMVV, bias_HMV), state, (1,) * len(state), run)
        (h,), after = self._cross(name, "recurrent", call)
        self.new_state |= dict(zip(keys, after, strict=True))
        return h

    def mlstm(
        self,
        name: str,
        q_BTHK: Tensor,
        k_BTHK: Tensor,
        v_BTHV: Tensor,
        log_input_BTH: Tensor,
        log_forget_BTH: Tensor,
        *,
        scale: float,
    ) -> Tensor:
        """Matrix memory with exponential input gate and normaliser, h = C q / max(|n . q|, 1): `[B, T, H, V]`. log_forget <= 0."""
        exact = accumulator(v_BTHV.dtype)
        keys = [f"{name}.{part}" for part in ("C", "n", "m")]
        state = tuple(self.state[key].to(exact) for key in keys)

        def run(tokens, per_head, state, stretch):
            h, after = dispatch.run("mlstm", stretch.tokens, *tokens, state, at=stretch, scale=scale)
            return (h,), after

        call = Call(v_BTHV.shape[2], (q_BTHK, k_BTHK, v_BTHV, log_input_BTH, log_forget_BTH), (), state, (1, 1, 1), run)

        def by_state(ranks):
            summary = linear_summary.mlstm(k_BTHK, v_BTHV, log_input_BTH, log_forget_BTH, self.here.starts_BT)
            return crossing.by_state(call, ranks, self.here, summary, linear_summary.compose_mlstm)

        (h,), after = self._cross(name, "mlstm", call, call.heads, by_state)
        self.new_state |= dict(zip(keys, after, strict=True))
        return h

    def memory(
        self,
        name: str,
        q_BTHK: Tensor,
        k_BTHK: Tensor,
        v_BTHV: Tensor,
        log_keep_BTH: Tensor,
        log_momentum_BTH: Tensor,
        step_BTH: Tensor,
        initial: Sequence[Tensor],
        *,
        chunk: int,
    ) -> Tensor:
        """Weights that learn to map k to v by gradient steps with momentum and forgetting, read at q: `[B, T, H, V]`.

        `initial`: the matrices `[H, in, out]` that every document starts from. The logs are <= 0, the step >= 0.
        """

        def run(tokens, per_head, state, stretch):
            y, after = dispatch.run("memory", stretch.tokens, *tokens, per_head, _memory(state), at=stretch, chunk=chunk)
            return (y,), _flat(after)

        keys = _memory_keys(name, len(initial))
        state = tuple(self.state[key].to(accumulator(v_BTHV.dtype)) for key in keys)
        tokens = (q_BTHK, k_BTHK, v_BTHV, log_keep_BTH, log_momentum_BTH, step_BTH)
        call = Call(v_BTHV.shape[2], tokens, tuple(initial), state, (1,) * len(state), run)
        (y,), after = self._cross(name, "memory", call)
        self.new_state |= dict(zip(keys, after, strict=True))
        return y

    def context(
        self,
        name: str,
        q_BTHK: Tensor,
        k_BTHK: Tensor,
        v_BTHV: Tensor,
        query_BTHK: Tensor,
        maps: Maps,
        initial: Sequence[Tensor],
        *,
        chunk: int,
        step_max: float,
        theta: float | None = None,
        prefix: tuple[Tensor, Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attention within segments of `chunk` tokens, to which a memory, asked `query`, adds keys and values: `[B, T, H, V]`.

        The memory learns from the attention's outputs; second is what each token then reads of it. `initial`, `prefix`: as in
        `memory` and `attention`; theta: of rotary positions in the segment.
        """
        settings = {"chunk": chunk, "step_max": step_max, "scale": q_BTHK.shape[-1] ** -0.5, "theta": theta}
        layers = len(initial)

        def run(tokens, per_head, state, stretch):
            own_maps, own_initial, fixed = Maps(*per_head[:4]), per_head[4 : 4 + layers], per_head[4 + layers :]
            shared = tuple(x.transpose(0, 1) for x in fixed) or None
            carried = Context(_memory(state[:-2]), *state[-2:])
            streams = (own_maps, own_initial, carried)
            y, read, after = dispatch.run("context", stretch.tokens, *tokens, *streams, at=stretch, prefix=shared, **settings)
            return (y, read), (*_flat(after.memory), after.k, after.v)

        keys = [*_memory_keys(name, layers), f"{name}.k", f"{name}.v"]
        exact = accumulator(v_BTHV.dtype)
        state = tuple(self.state[key].to(exact if k < len(keys) - 2 else v_BTHV.dtype) for k, key in enumerate(keys))
        fixed = () if prefix is None else tuple(x.transpose(0, 1) for x in prefix)
        head_dims = (*(1,) * (len(keys) - 2), 3, 3)
        call = Call(v_BTHV.shape[2], (q_BTHK, k_BTHK, v_BTHV, query_BTHK), (*maps, *initial, *fixed), state, head_dims, run)
        (y, read), after = self._cross(name, "context", call)
        self.new_state |= dict(zip(keys, after, strict=True))
        return y, read

    def _alone(self, op: Op, call: Call) -> Crossed:
        """Run the op on all of the sequence, and note it."""
        outputs, after = call.run(call.tokens, call.per_head, call.state, self.here)
        self.ops.append(op._replace(outputs=sum(crossing.numbers(y[0, 0]) for y in outputs)))
        return outputs, after

    def _cross(self, name: str, family: str, call: Call, transition: int = 0, by_state: ByState | None = None) -> Crossed:
        """Run the op as it is to cross. transition: how many numbers multiply the state, where it crosses `by_state`."""
        op = crossing.op_of(name, family, call, affine=by_state is not None, transition=transition)
        if self.ranks is None:
            return self._alone(op, call)
        return crossing.cross(op, call, self.ranks, self.here, self.whole, by_state)


def _memory_keys(name: str, layers: int) -> list[str]:
    return [f"{name}.{part}.{layer}" for part in Memory._fields for layer in range(layers)]


def _memory(state: Sequence[Tensor]) -> Memory:
    """From its weights in the order of `_memory_keys`."""
    layers = len(state) // len(Memory._fields)
    return Memory(*(tuple(state[first : first + layers]) for first in range(0, len(state), layers)))


def _flat(memory: Memory) -> tuple[Tensor, ...]:
    return tuple(w for part in memory for w in part)
