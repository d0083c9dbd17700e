"""Chooses, once per family, the implementation that runs; the only way in to the ops for `llm/sequence/`.

Ops run with autocast off: each says itself which dtype it computes in (autocast would turn products of float32 decays into
bfloat16). One token at a time runs the definition, which is also the fastest form of a single step; many tokens on a CPU run the
family's compiled loop where it has one, on a GPU a kernel that can (`kernels.py`).
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from llm.docs import Stretch
from llm.ops.attention import chunk as attention_chunk
from llm.ops.attention import naive as attention_naive
from llm.ops.conv import chunk as conv_chunk
from llm.ops.conv import naive as conv_naive
from llm.ops.linear import chunk as linear_chunk
from llm.ops.linear import mlstm as mlstm_chunk
from llm.ops.linear import naive as linear_naive
from llm.ops.linear.naive import discretised
from llm.ops.loops import loop
from llm.ops.memory import chunk as memory_chunk
from llm.ops.memory import context as context_chunk
from llm.ops.memory import naive as memory_naive
from llm.ops.recurrent import chunk as recurrent_chunk
from llm.ops.recurrent import naive as recurrent_naive
from llm.ops.routes import kernel_of
from llm.ops.scan import chunk as scan_chunk
from llm.ops.scan import naive as scan_naive
from llm.ops.scan import summary as scan_summary

# family -> (one token, many tokens)
IMPLEMENTATIONS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "attention": (attention_naive.attention, attention_chunk.attention),
    "conv": (conv_naive.conv, conv_chunk.conv),
    "elementwise": (scan_naive.elementwise, scan_chunk.elementwise),
    "linear": (linear_naive.linear, linear_chunk.linear),
    "memory": (memory_naive.memory, memory_chunk.memory),
    "recurrent": (recurrent_naive.recurrent, recurrent_chunk.recurrent),
    "scan": (scan_naive.scan, scan_chunk.scan),
    "scan adjoint": (scan_summary.scan_adjoint, scan_summary.scan_adjoint),
    "context": (memory_naive.context, context_chunk.context),
    "mlstm": (linear_naive.mlstm, mlstm_chunk.mlstm),
}


# Their chunks count from positions in the document; the others are told where documents start.
BY_POSITION = {"memory", "context"}


def run(family: str, tokens: int, x: Tensor, *streams: Any, at: Stretch | None = None, **settings: Any) -> Any:
    """Run a family's op on `x` and its other streams, `tokens` of them at once; at: which, and where documents start among them."""
    # there is no autocast to switch off on the meta device
    with nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False):
        if tokens > 1 and at is not None and (kernel := kernel_of(family, at, x, *streams, **settings)):
            return kernel(x, *streams, at=at, **settings)
        if family == "ssd":
            (k, v, step, rate, *rest), family = streams, "linear"
            streams = k, *discretised(v, step, rate), *rest
        step_op, many = IMPLEMENTATIONS[family]
        op = step_op if tokens == 1 else loop(family, x) or many
        where = () if at is None else (at.phase_BT if family in BY_POSITION else at.starts_BT,)
        if family in BY_POSITION and tokens > 1 and at is not None:
            settings["chunks"] = at.most_chunks(settings["chunk"])
        return op(x, *streams, *where, **settings)
