"""Tokens re-laid with an empty slot before each document, for kernels that know none: what ends a state goes there."""

from typing import NamedTuple

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
