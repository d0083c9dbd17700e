"""`Seq`: a mixer's only window on other tokens.

One method per op family. Each takes the state of that name, keeps documents apart, picks the implementation and leaves the new
state, so that isolation and carrying are written here once and never in a mixer.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from llm.docs import Docs
from llm.ops import dispatch, rotary
from llm.ops.memory.naive import Context, Maps, Memory
from llm.ops.recurrent.cells import CELLS
from llm.state import State, StateSpec, accumulator

POSITION = StateSpec((), torch.int64)


def conv_state(width: int, taps: int) -> dict[str, StateSpec]:
    """State of `Seq.conv`: the last inputs of the current document."""
    return {"": StateSpec((taps - 1, width))}


def attention_state(kv_heads: int, key: int, value: int, window: int | None) -> dict[str, StateSpec]:
    """State of `Seq.attention`: a cache of keys and values and which of them belong to the current document."""
    slots, grows = (0, True) if window is None else (window - 1, False)
    return {
        ".k": StateSpec((slots, kv_heads, key), head_dim=1, grows=grows),
        ".v": StateSpec((slots, kv_heads, value), head_dim=1, grows=grows),
        ".valid": StateSpec((slots,), torch.bool, grows=grows),
    }


def linear_state(heads: int, key: int, value: int) -> dict[str, StateSpec]:
    """State of `Seq.linear`: a matrix per head, in float32 (float64 when the streams are)."""
    return {"": StateSpec((heads, key, value), torch.float32, head_dim=0)}


def scan_state(channels: int, states: int, dtype: torch.dtype = torch.float32) -> dict[str, StateSpec]:
    """State of `Seq.scan`: N numbers per channel, in float32 or complex64."""
    return {"": StateSpec((channels, states), dtype, head_dim=0)}


def elementwise_state(channels: int, dtype: torch.dtype = torch.float32) -> dict[str, StateSpec]:
    """State of `Seq.elementwise`: a number per channel, in float32 or complex64."""
    return {"": StateSpec((channels,), dtype, head_dim=0)}


def recurrent_state(cell: str, heads: int, channels: int) -> dict[str, StateSpec]:
    """State of `Seq.recurrent`: what the cell keeps, in float32."""
    return {f".{name}": StateSpec((heads, channels), torch.float32, head_dim=0) for name in CELLS[cell].states}


def mlstm_state(heads: int, key: int, value: int) -> dict[str, StateSpec]:
    """State of `Seq.mlstm`: matrix C and normaliser n, both times exp(-m), and the stabiliser m; in float32."""
    return {
        ".C": StateSpec((heads, key, value), torch.float32, head_dim=0),
        ".n": StateSpec((heads, key), torch.float32, head_dim=0),
        ".m": StateSpec((heads,), torch.float32, head_dim=0),
    }


def memory_state(heads: int, sizes: Sequence[int]) -> dict[str, StateSpec]:
    """State of `Seq.memory`: per matrix its value at the chunk's start, its value now and its momentum, in float32."""
    return {
        f".{part}.{layer}": StateSpec((heads, *size), torch.float32, head_dim=0)
        for part in Memory._fields
        for layer, size in enumerate(pairwise(sizes))
    }


def context_state(heads: int, sizes: Sequence[int], chunk: int) -> dict[str, StateSpec]:
    """State of `Seq.context`: the memory, and the segment's keys and values, retrieved and own."""
    cache = {key: StateSpec((chunk, 2, heads, size), head_dim=2) for key, size in ((".k", sizes[0]), (".v", sizes[-1]))}
    return memory_state(heads, sizes) | cache


def named(name: str, specs: dict[str, StateSpec]) -> dict[str, StateSpec]:
    """The specs of one op under the name that the mixer gave it."""
    return {name + key: spec for key, spec in specs.items()}


class Seq:
    """One pass of one mixer over `[B, T]` tokens.

    Args:
        state: the incoming state, with every entry of the mixer's spec.
        fresh: whether that state is the initial one, behind which no token lies.
        docs: where documents start; None: nowhere in this batch.
    """

    def __init__(self, state: State, fresh: bool, docs: Docs | None, tokens: int):
        self.state = state
        self.fresh = fresh
        self.docs = docs
        self.tokens = tokens
        self.new_state: State = {"position": self.position_BT[:, -1] + 1}

    @property
    def starts_BT(self) -> Tensor | None:
        return None if self.docs is None else self.docs.starts_BT

    @property
    def position_BT(self) -> Tensor:
        """Each token's position in its document."""
        offset_B = self.state["position"]
        if self.docs is None:
            return offset_B[:, None] + torch.arange(self.tokens, device=offset_B.device)
        return self.docs.position_BT(offset_B)

    def rotary(self, *streams_BTHK: Tensor, theta: float) -> tuple[Tensor, ...]:
        """Rotary position embedding of each stream, by positions in the document."""
        position_BT = self.position_BT
        return tuple(rotary.rotary(x, position_BT, theta) for x in streams_BTHK)

    def conv(self, name: str, x_BTD: Tensor, weight_DW: Tensor, bias_D: Tensor | None = None) -> Tensor:
        """Short causal depthwise convolution: `[B, T, D]`."""
        tail = self.state[name].to(x_BTD.dtype)
        # a pinned bias is float32 under bfloat16 streams
        weights = weight_DW.to(x_BTD.dtype), None if bias_D is None else bias_D.to(x_BTD.dtype)
        y, self.new_state[name] = dispatch.run("conv", self.tokens, x_BTD, *weights, tail, self.starts_BT)
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
        k, v = k_BTGK, v_BTGV
        valid = self.state[f"{name}.valid"]
        if self.fresh:
            valid = valid[:, :0]
        else:
            k = torch.cat([self.state[f"{name}.k"].to(k.dtype), k], 1)
            v = torch.cat([self.state[f"{name}.v"].to(v.dtype), v], 1)
        scale = q_BTHK.shape[-1] ** -0.5 if scale is None else scale
        streams = (k, v, valid, self.starts_BT)
        settings = {"window": window, "scale": scale, "prefix": prefix, "soft_cap": soft_cap}
        y = dispatch.run("attention", self.tokens, q_BTHK, *streams, **settings)
        self._keep_cache(name, k, v, valid, window)
        return y

    def _keep_cache(self, name: str, k: Tensor, v: Tensor, valid: Tensor, window: int | None) -> None:
        """The last window - 1 keys and values, or all of them, with those of ended documents marked."""
        new = valid.new_ones(len(valid), self.tokens)
        if self.docs is not None:
            new, valid = self.docs.id_BT == self.docs.id_BT[:, -1:], valid & (self.docs.id_BT[:, -1:] == 0)
        valid = torch.cat([valid, new], 1)
        if window is not None:
            k, v, valid = (_last(x, window - 1) for x in (k, v, valid))
        self.new_state |= {f"{name}.k": k, f"{name}.v": v, f"{name}.valid": valid}

    def linear(self, name: str, q_BTGK: Tensor, k_BTGK: Tensor, v_BTHV: Tensor, log_decay: Tensor, *, scale: float = 1.0) -> Tensor:
        """Gated linear recurrence S_t = exp(log_decay_t) S_{t-1} + k_t v_t^T, y_t = scale q_t S_t: `[B, T, H, V]`.

        Queries and keys may come in G groups, G dividing H. `log_decay` is `[H]`, `[B, T, H]` or `[B, T, H, K]`, <= 0.
        """
        state = self.state[name].to(accumulator(v_BTHV.dtype))
        streams = (k_BTGK, v_BTHV, log_decay, state, self.starts_BT)
        y, self.new_state[name] = dispatch.run("linear", self.tokens, q_BTGK, *streams, scale=scale)
        return y

    def scan(self, name: str, u_BTD: Tensor, dt_BTD: Tensor, A_DN: Tensor, B_BTGN: Tensor, C_BTGN: Tensor) -> Tensor:
        """Selective scan h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t, y_t = Re(C_t . h_t): `[B, T, D]`.

        dt >= 0, the real part of A <= 0; G divides D. A, B and C may be complex where the state is.
        """
        streams = (dt_BTD, A_DN, B_BTGN, C_BTGN, self.state[name], self.starts_BT)
        y, self.new_state[name] = dispatch.run("scan", self.tokens, u_BTD, *streams)
        return y

    def elementwise(self, name: str, x_BTD: Tensor, decay_BTD: Tensor) -> Tensor:
        """The recurrence h_t = a_t h_{t-1} + x_t per channel, real or, where the state is, complex: `[B, T, D]`. |a| <= 1."""
        h, self.new_state[name] = dispatch.run("elementwise", self.tokens, x_BTD, decay_BTD, self.state[name], self.starts_BT)
        return h

    def recurrent(self, name: str, cell: str, x_BTHMV: Tensor, R_HMVV: Tensor, bias_HMV: Tensor) -> Tensor:
        """A cell of `llm/ops/recurrent/cells.py` on its M gates' preactivations and h R + b of its last output: `[B, T, H, V]`."""
        keys = [f"{name}.{part}" for part in CELLS[cell].states]
        state = tuple(self.state[key].to(accumulator(x_BTHMV.dtype)) for key in keys)
        h, after = dispatch.run("recurrent", self.tokens, x_BTHMV, R_HMVV, bias_HMV, state, self.starts_BT, cell=cell)
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
        streams = (k_BTHK, v_BTHV, log_input_BTH, log_forget_BTH)
        h, after = dispatch.run("mlstm", self.tokens, q_BTHK, *streams, state, self.starts_BT, scale=scale)
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
        state = self._memory(name, len(initial), accumulator(v_BTHV.dtype))
        streams = (k_BTHK, v_BTHV, log_keep_BTH, log_momentum_BTH, step_BTH)
        y, after = dispatch.run("memory", self.tokens, q_BTHK, *streams, tuple(initial), state, self._phase_BT, chunk=chunk)
        self._keep_memory(name, after)
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
        memory = self._memory(name, len(initial), accumulator(v_BTHV.dtype))
        state = Context(memory, *(self.state[f"{name}.{part}"].to(v_BTHV.dtype) for part in "kv"))
        streams = (k_BTHK, v_BTHV, query_BTHK, maps, tuple(initial), state, self._phase_BT)
        settings = {"step_max": step_max, "scale": q_BTHK.shape[-1] ** -0.5, "theta": theta, "prefix": prefix}
        y, read, after = dispatch.run("context", self.tokens, q_BTHK, *streams, chunk=chunk, **settings)
        self._keep_memory(name, after.memory)
        self.new_state |= {f"{name}.k": after.k, f"{name}.v": after.v}
        return y, read

    @property
    def _phase_BT(self) -> Tensor | None:
        """Positions, where chunks count from elsewhere than the first token."""
        return None if self.fresh and self.docs is None else self.position_BT

    def _memory(self, name: str, layers: int, dtype: torch.dtype) -> Memory:
        parts = ([self.state[f"{name}.{part}.{layer}"] for layer in range(layers)] for part in Memory._fields)
        return Memory(*map(tuple, parts)).to(dtype)

    def _keep_memory(self, name: str, memory: Memory) -> None:
        for part, weights in zip(Memory._fields, memory, strict=True):
            self.new_state |= {f"{name}.{part}.{layer}": w for layer, w in enumerate(weights)}


def _last(x: Tensor, count: int) -> Tensor:
    """The last `count` along dimension 1, padded on the left with zeros when there are fewer."""
    missing = count - x.shape[1]
    if missing > 0:
        return F.pad(x, (0, 0) * (x.ndim - 2) + (missing, 0))
    return x[:, x.shape[1] - count :]
