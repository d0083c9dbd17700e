"""Documents for kernels that know segments, and, as tokens re-laid with an empty slot before each, for those that know none."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llm.docs import Stretch


class Slots(NamedTuple):
    """slot_BT: each token's place. places: places of a row, with those behind a row that has fewer documents than another."""

    slot_BT: Tensor
    places: int

    def placed(self, x_BTx: Tensor, empty: float = 0.0) -> Tensor:
        """`[B, places, ...]`; what is in empty slots has no gradient."""
        index = self.slot_BT.view(*self.slot_BT.shape, *(1,) * (x_BTx.ndim - 2)).expand_as(x_BTx)
        return x_BTx.new_full((len(x_BTx), self.places, *x_BTx.shape[2:]), empty).scatter(1, index, x_BTx)

    def taken(self, y_BSx: Tensor) -> Tensor:
        """The tokens' `[B, T, ...]`, of `[B, places, ...]`."""
        index = self.slot_BT.view(*self.slot_BT.shape, *(1,) * (y_BSx.ndim - 2))
        return y_BSx.gather(1, index.expand(-1, -1, *y_BSx.shape[2:]))


def slots_of(at: Stretch, rows: int, device: torch.device, before: int = 0, behind: int = 0) -> Slots:
    """before, behind: empty slots at the ends of each row."""
    slot_BT = before + torch.arange(at.tokens, device=device).expand(rows, -1)
    if at.documents is None:
        return Slots(slot_BT, before + at.tokens + behind)
    return Slots(slot_BT + at.documents.id_BT, before + at.tokens + at.documents.most_starts + behind)


def over_documents(run: Callable[..., Any], streams: Sequence[Tensor], state: Tensor, at: Stretch) -> tuple[Tensor, Tensor]:
    """(y, final state) of `run(*streams, initial_state=...)` on rows, or, where there are documents, on all their segments.

    Streams `[B, T, ...]` are then one row, with the segments' ends as `cu_seqlens` and, in host memory, `cu_seqlens_cpu`.
    """
    streams = [x.contiguous() for x in streams]
    if at.documents is None:
        return run(*streams, initial_state=state.contiguous())
    segments = at.documents.segments
    flat = (x.flatten(0, 1)[None] for x in streams)
    where = {"cu_seqlens": segments.cu_seqlens, "cu_seqlens_cpu": segments.host}
    y, final = run(*flat, initial_state=segments.entering(state), **where)
    return y[0].unflatten(0, streams[0].shape[:2]), segments.leaving(final)
