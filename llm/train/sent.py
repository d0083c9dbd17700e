"""What the ranks of a run send in its steps, for its records: bytes and calls by collective, counted at the process groups."""

from typing import Any

import torch

from llm.parallel import Ranks
from llm.parallel.traffic import SHARES, Traffic
from llm.train.world import World

KINDS = ("sequence", "zero")


class Sent(Traffic):
    """Use in a `with` block around each step. ranks: those that share a sequence with this one; None: none does.

    `sequence` is what goes between these, `zero` all else: gradients, weights, and the few numbers of a step that ranks agree on.
    """

    def __init__(self, world: World, ranks: Ranks | None):
        super().__init__()
        self.world, self.steps = world, 0
        self.own = None if ranks is None else ranks.group.group_name

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.steps += 1

    def read(self) -> dict[str, float]:
        """Per step since the last reading and of all ranks, which call it together: `sent/KIND/COLLECTIVE/bytes` and `/calls`."""
        if self.world.size == 1:
            return {}
        table = torch.zeros(2, len(KINDS), len(SHARES), dtype=torch.float64)
        for row, counted in zip(table, (self.bytes, self.calls), strict=True):
            for (group, collective), n in counted.items():
                row[KINDS.index("sequence" if group == self.own else "zero"), list(SHARES).index(collective)] += n / self.steps
            counted.clear()
        self.steps = 0
        of_all = self.world.sum(table.to(self.world.device)).tolist()
        return {
            f"sent/{kind}/{collective}/{what}": of_all[i][j][k]
            for j, kind in enumerate(KINDS)
            for k, collective in enumerate(SHARES)
            for i, what in enumerate(("bytes", "calls"))
            if of_all[1][j][k]
        }
