"""What a rank sends: bytes and calls by collective, counted where torch hands them to the process group, forward and backward.

A rank that gives x bytes to a group of n sends, by the usual algorithms: all-gather (n - 1) x, all-to-all what is not its own,
all-reduce 2 (n - 1) / n x, broadcast x from its root, send x. Receiving costs nothing here: another rank has counted it.
"""

from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Traffic(TorchDispatchMode):
    """Use in a `with` block. bytes, calls: by collective."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(self.bytes.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func._schema.name.removeprefix("c10d::").rstrip("_")
            self.calls[name] += 1
            self.bytes[name] += _sent(name, args)
        return func(*args, **(kwargs or {}))


def _sent(name: str, args: tuple) -> int:
    if name == "alltoall_base":
        _, given, group, _, in_sizes = args[:5]
        rank, size = _place(group)
        own = in_sizes[rank] * given.element_size() if in_sizes else _bytes(given) // size
        return _bytes(given) - own
    if name == "allgather":
        _, given, group = args[:3]
        return (_place(group)[1] - 1) * sum(map(_bytes, given))
    if name == "allreduce":
        given, group = args[:2]
        size = _place(group)[1]
        return 2 * (size - 1) * sum(map(_bytes, given)) // size
    if name == "broadcast":
        given, group, _, root = args[:4]
        return sum(map(_bytes, given)) if _place(group)[0] == root else 0
    if name == "send":
        return sum(map(_bytes, args[0]))
    return 0


def _bytes(x: torch.Tensor) -> int:
    return x.numel() * x.element_size()


def _place(group: Any) -> tuple[int, int]:
    group = torch.distributed.ProcessGroup.unbox(group)
    return group.rank(), group.size()
