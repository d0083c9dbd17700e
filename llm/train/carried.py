"""States carried from step to step under `contiguous` packing: truncated backpropagation through time (Williams and Peng, 1990).

Row l of the batch goes on where it ended a step ago, so its state does: values pass the border of a step, gradients do not. A
checkpoint holds the states by row of the batch, so a start with other ranks finds those of its own rows.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from llm.data import Batches
from llm.errors import CheckpointError
from llm.state import State
from llm.train import checkpoint_files as files
from llm.train.config import RunConfig
from llm.train.world import World

ROWS = "rows"


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

    def tensors(self) -> dict[str, Tensor]:
        """All of it by name, to be saved: `k/rows`, and `k/name` for each name of the state, of micro-batch k."""
        parts = [(k, {ROWS: rows, **state}) for k, (rows, state) in enumerate(zip(self.rows, self.states, strict=True)) if state]
        return {f"{k}/{name}": value.contiguous().clone() for k, part in parts for name, value in part.items()}

    def load(self, checkpoint: Path, world: World) -> None:
        """The states that the checkpoint holds of this rank's rows, whatever ranks saved them. Raises CheckpointError."""
        own = checkpoint / files.carried_of(world.rank)
        wanted = torch.cat(self.rows)
        found: dict[int, State] = {}
        for path in [own, *sorted(checkpoint.glob("carried-*.safetensors"))]:
            if all(row < 0 or row in found for row in wanted.tolist()) or not path.is_file():
                continue
            parts: dict[str, State] = {}
            for key, value in load_file(path, device=str(world.device)).items():
                part, _, name = key.partition("/")
                parts.setdefault(part, {})[name] = value
            for state in parts.values():
                saved = enumerate(state.pop(ROWS).tolist())
                found |= {row: {name: value[k] for name, value in state.items()} for k, row in saved if row >= 0}
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
