"""What each operation of `Seq` keeps from token to token: specs by the end of the entries' names, for a mixer's `state_spec`."""

from collections.abc import Sequence
from itertools import pairwise

import torch

from llm.ops.memory.naive import Memory
from llm.ops.recurrent.cells import CELLS
from llm.state import StateSpec

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
