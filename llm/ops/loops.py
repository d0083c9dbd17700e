"""The families with a compiled loop for CPU tensors. (An exported model, which is one file of Python, has none.)"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from llm.ops import compiled
from llm.ops.conv import loop as conv_loop
from llm.ops.linear import loop as linear_loop
from llm.ops.memory import loop as memory_loop
from llm.ops.recurrent import loop as recurrent_loop
from llm.ops.scan import loop as scan_loop

LOOPS: dict[str, tuple[str, Callable[..., Any]]] = {
    "conv": (conv_loop.SOURCE, conv_loop.conv),
    "linear": (linear_loop.SOURCE, linear_loop.linear),
    "memory": (memory_loop.SOURCE, memory_loop.memory),
    "mlstm": (linear_loop.SOURCE, linear_loop.mlstm),
    "recurrent": (recurrent_loop.SOURCE, recurrent_loop.recurrent),
    "scan": (scan_loop.SOURCE, scan_loop.scan),
    "scan adjoint": (scan_loop.SOURCE, scan_loop.scan_adjoint),
}


def loop(family: str, x: Tensor) -> Callable[..., Any] | None:
    """The family's loop, if there is one that can run on `x`."""
    source, op = LOOPS.get(family, ("", None))
    return op if op is not None and compiled.usable(x, source) else None
