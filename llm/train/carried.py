"""States carried from step to step under `contiguous` packing: truncated backpropagation through time (Williams and Peng, 1990).

Row l of the batch goes on where it ended a step ago, so its state does: values pass the border of a step, gradients do not. A
checkpoint holds the states by row of the batch, so a start with other ranks finds those of its own rows.
"""

from pathlib import Path

import numpy as np
import torch

from llm.data import Batches
from llm.errors import CheckpointError
from llm.state import State
from llm.train.config import RunConfig
from llm.train.world import World


class Carried:
    """This rank's states, by micro-batch; None before the first step.

    rows: per micro-batch, int64, the rows of the global batch that it holds; -1 is padding.
    """

    def __init__(self, rows: list[np.ndarray]):
        self.rows = [torch.from_numpy(part) for part in rows]
        self.states: list[State | None] = [None] * len(rows)

    @classmethod
    def of(cls, config: RunConfig, batches: Batches) -> "Carried | None":
        """None where nothing is carried."""
        return cls(batches.rows_by_micro_batch()) if config.data.packing == "contiguous" else None

    def keep(self, micro_batch: int, state: State) -> None:
        """Take over the state behind a micro-batch, cut off from its graph."""
        self.states[micro_batch] = {name: value.detach() for name, value in state.items()}

    def save(self, folder: Path, world: World) -> None:
        parts = [(rows, state) for rows, state in zip(self.rows, self.states, strict=True) if state is not None]
        torch.save(parts, folder / f"carried-{world.rank}.pt")

    def load(self, checkpoint: Path, world: World) -> None:
        """The states that the checkpoint holds of this rank's rows, whatever ranks saved them. Raises CheckpointError."""
        own = checkpoint / f"carried-{world.rank}.pt"
        wanted = torch.cat(self.rows)
        found: dict[int, State] = {}
        for path in [own, *sorted(checkpoint.glob("carried-*.pt"))]:
            if all(row < 0 or row in found for row in wanted.tolist()) or not path.is_file():
                continue
            for rows, state in torch.load(path, weights_only=True, map_location=world.device):
                found |= {row: {name: value[k] for name, value in state.items()} for k, row in enumerate(rows.tolist()) if row >= 0}
        missing = [row for row in wanted.tolist() if row >= 0 and row not in found]
        if missing:
            raise CheckpointError(
                f"{checkpoint} holds no state of row {missing[0]} of the batch, which data.packing (contiguous) carries on; "
                "resume with the batch that it was saved with"
            )
        blank = {name: torch.zeros_like(value) for name, value in next(iter(found.values())).items()}
        for k, rows in enumerate(self.rows):
            states = [found.get(row, blank) for row in rows.tolist()]
            self.states[k] = {name: torch.stack([state[name] for state in states]) for name in blank}
