"""What a rank sends: bytes and calls by collective, counted where torch hands them to the process group, forward and backward.

The counting stands in the dispatcher at the collectives alone: it runs for their Autograd key and passes them on. Nothing
else is slowed down, so a run counts at every step.

A rank that gives x bytes to a group of n sends, by the usual algorithms: all-gather (n - 1) x, all-to-all what is not its own,
reduce-scatter (n - 1) / n x, all-reduce 2 (n - 1) / n x, broadcast x from its root, reduce x to it, send x. Receiving costs nothing
here: another rank has counted it.
"""

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any, ClassVar

import torch
import torch.distributed as dist

AFTER_AUTOGRAD = torch._C._after_autograd_keyset


class Traffic:
    """Use in a `with` block, as often as you like: it goes on counting. bytes, calls: by (process group's name, collective)."""

    counting: ClassVar[list["Traffic"]] = []

    def __init__(self) -> None:
        self.bytes: Counter[tuple[str, str]] = Counter()
        self.calls: Counter[tuple[str, str]] = Counter()

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(self.bytes.values())

    def __enter__(self) -> "Traffic":
        _count_at_the_dispatcher()
        Traffic.counting.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        Traffic.counting.remove(self)

    def add(self, group: Any, collective: str, sent: int) -> None:
        self.bytes[group.group_name, collective] += sent
        self.calls[group.group_name, collective] += 1


@cache
def _count_at_the_dispatcher() -> Any:
    """Once per process; what is returned keeps it there."""
    library = torch.library.Library("c10d", "IMPL")
    for name, collective in COLLECTIVES.items():
        library.impl(name, _counted(getattr(torch.ops.c10d, name).default, collective), "Autograd", with_keyset=True)
    return library


def _counted(op: Any, collective: str) -> Callable[..., Any]:
    share = SHARES[collective]
    place = next(k for k, argument in enumerate(op._schema.arguments) if argument.name == "process_group")
    # what a rank gives is the input, or what all give together where that is the argument
    given = next(k for k, argument in enumerate(op._schema.arguments) if argument.name in GIVEN)

    def run(keys: Any, *args: Any) -> Any:
        if Traffic.counting:
            group = dist.ProcessGroup.unbox(args[place])
            sent = share(_bytes(args[given]), group, args[place + 1 :])
            for traffic in Traffic.counting:
                traffic.add(group, collective, sent)
        return op.redispatch(keys & AFTER_AUTOGRAD, *args)

    return run


def _to_others(given: int, group: Any, rest: tuple) -> int:
    return (group.size() - 1) * given


def _but_own(given: int, group: Any, rest: tuple) -> int:
    return given - given // group.size()


def _but_own_split(given: int, group: Any, rest: tuple) -> int:
    """rest: how many rows come from each rank, and how many go to each; none: as many to each."""
    to = rest[1]
    return given - given * to[group.rank()] // max(1, sum(to)) if to else _but_own(given, group, rest)


def _all_reduced(given: int, group: Any, rest: tuple) -> int:
    return 2 * (group.size() - 1) * given // group.size()


def _from_root(given: int, group: Any, rest: tuple) -> int:
    return given if rest[0] == group.rank() else 0


def _to_root(given: int, group: Any, rest: tuple) -> int:
    return given if rest[1] != group.rank() else 0


def _sent(given: int, group: Any, rest: tuple) -> int:
    return given


def _bytes(x: Any) -> int:
    """Of a tensor or of all in lists of them."""
    return x.numel() * x.element_size() if isinstance(x, torch.Tensor) else sum(map(_bytes, x))


GIVEN = ("input", "inputs", "input_tensor", "input_tensors", "input_list", "tensors")
SHARES: dict[str, Callable[[int, Any, tuple], int]] = {
    "all_to_all": _but_own_split,
    "all_gather": _to_others,
    "reduce_scatter": _but_own,
    "all_reduce": _all_reduced,
    "broadcast": _from_root,
    "reduce": _to_root,
    "send": _sent,
}
COLLECTIVES = {
    "alltoall_base_": "all_to_all",
    "allgather_": "all_gather",
    "_allgather_base_": "all_gather",
    "allgather_coalesced_": "all_gather",
    "allgather_into_tensor_coalesced_": "all_gather",
    "reduce_scatter_": "reduce_scatter",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_tensor_coalesced_": "reduce_scatter",
    "allreduce_": "all_reduce",
    "allreduce_coalesced_": "all_reduce",
    "broadcast_": "broadcast",
    "reduce_": "reduce",
    "send": "send",
}
