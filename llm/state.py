"""The state that a model carries over time: a flat dict of tensors, batch first, keyed `op.name`, in a model `layer.op.name`.

New tensors come out of every call; the ones passed in are never changed. Detaching is the train loop's decision.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True)
class StateSpec:
    """What one entry of a state looks like.

    shape: without the batch. dtype: None is the dtype of the activations. head_dim: the dimension (of `shape`) that counts heads
    or groups, if any: the one that sequence parallelism shards. grows: whether the first dimension grows with the context
    (its size here is the initial one).
    """

    shape: tuple[int, ...]
    dtype: torch.dtype | None = None
    head_dim: int | None = None
    grows: bool = False

    def zeros(self, batch: int, device: torch.device | str, dtype: torch.dtype) -> Tensor:
        return torch.zeros(batch, *self.shape, device=device, dtype=self.dtype or dtype)

    def bytes(self, dtype: torch.dtype) -> int:
        """Bytes of one row of the batch at the initial size."""
        size = (self.dtype or dtype).itemsize
        for n in self.shape:
            size *= n
        return size


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype recurrent states and sums are kept in: float32, or float64 when the streams are."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def select(state: State, prefix: str) -> State:
    """The entries under `prefix.`, with it taken off."""
    return {key[len(prefix) + 1 :]: value for key, value in state.items() if key.startswith(prefix + ".")}


def place(state: State, prefix: str) -> State:
    """The entries with `prefix.` put before their keys."""
    return {f"{prefix}.{key}": value for key, value in state.items()}
