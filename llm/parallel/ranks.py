"""The ranks that share a sequence."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch.distributed as dist

Mode = Literal["auto", "heads", "state", "pipelined"]
MODES = get_args(Mode)


@dataclass(frozen=True)
class Ranks:
    """Ranks in the order of time: rank r holds tokens [r T, (r + 1) T) of every sequence.

    group: their process group. mode: how layers cross from rank to rank (`llm/parallel/crossing.py`). states: whether the state
    behind the last token is asked for; every rank then gets it, whole.
    """

    rank: int
    size: int
    group: Any = None
    mode: Mode = "auto"
    states: bool = True

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def last(self) -> bool:
        return self.rank == self.size - 1

    def globally(self, rank: int) -> int:
        """The number of one of these ranks among all."""
        return rank if self.group is None else dist.get_global_rank(self.group, rank)
