"""Tokens re-laid into the whole chunks of their documents, and back.

Chunks count from documents' starts, so every document's last chunk, and the pass's first and last, may hold empty slots, which
change nothing. `padding` says how many.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Layout(NamedTuple):
    """Where tokens stand among N whole chunks.

    slot_BT: each token's place in N * C. token_BS: the token in each place, any one in an empty one. full_NBC: which places hold
    a token. opens_NB: the chunk's first place does: it starts from the weights it finds. begins_NB: a document starts there.
    """

    chunks: int
    slot_BT: Tensor
    token_BS: Tensor
    full_NBC: Tensor
    opens_NB: Tensor
    begins_NB: Tensor


def layout(position_BT: Tensor, chunk: int, chunks: int | None = None) -> Layout:
    """Of tokens at these positions in their documents. chunks: as many as a row falls into, or more; None: they are counted."""
    B, T = position_BT.shape
    number_BT = numbered(position_BT, chunk)
    N = counted_chunks(number_BT) if chunks is None else chunks
    slot_BT = number_BT * chunk + position_BT % chunk
    empty = slot_BT.new_full((B, N * chunk), -1)
    token_BS = empty.scatter(1, slot_BT, torch.arange(T, device=slot_BT.device).expand(B, T))
    full_NBC = (token_BS >= 0).view(B, N, chunk).transpose(0, 1)
    token_BS = token_BS.clamp(min=0)
    first_NB = token_BS.view(B, N, chunk)[..., 0].T
    opens_NB = full_NBC[..., 0]
    begins_NB = opens_NB & (position_BT.gather(1, first_NB.T).T == 0)
    return Layout(N, slot_BT, token_BS, full_NBC, opens_NB, begins_NB)


def numbered(position_BT: Tensor, chunk: int) -> Tensor:
    """Which of its row's chunks each token falls into."""
    opens_BT = position_BT % chunk == 0
    return opens_BT.long().cumsum(1) - opens_BT[:, :1].long()


def counted_chunks(number_BT: Tensor) -> int:
    """Of the row that has most. Waits for the device."""
    return int(number_BT[:, -1].max()) + 1


def padding(position_BT: Tensor, chunk: int) -> float:
    """Empty slots per token: the share of work that the layout of these documents adds, where their chunks are counted."""
    return layout(position_BT, chunk).full_NBC.numel() / position_BT.numel() - 1


def chunked(x_BTHx: Tensor, placed: Layout | None, chunk: int) -> Tensor:
    """`[B, T, H, ...]` -> `[N, B, H, C, ...]`, with zeros in empty slots."""
    B, T = x_BTHx.shape[:2]
    if placed is None:
        N = -(-T // chunk)
        x = F.pad(x_BTHx, (0, 0) * (x_BTHx.ndim - 2) + (0, N * chunk - T))
    else:
        N = placed.chunks
        rows = placed.token_BS + T * torch.arange(B, device=x_BTHx.device)[:, None]
        x = x_BTHx.flatten(0, 1).index_select(0, rows.flatten()).view(B, N * chunk, *x_BTHx.shape[2:])
    x = x.view(B, N, chunk, *x_BTHx.shape[2:]).movedim((1, 3), (0, 2))
    if placed is not None:
        held = placed.full_NBC[:, :, None]
        x = torch.where(held if x.ndim == 4 else held[..., None], x, 0)
    return x.contiguous()


def joined(x_NBHCV: Tensor, placed: Layout | None, T: int) -> Tensor:
    """The inverse of `chunked`: `[B, T, H, V]`."""
    x = x_NBHCV.movedim((0, 2), (1, 3)).flatten(1, 2)
    if placed is None:
        return x[:, :T]
    B, S = x.shape[:2]
    rows = placed.slot_BT + S * torch.arange(B, device=x.device)[:, None]
    return x.flatten(0, 1).index_select(0, rows.flatten()).view(B, T, *x.shape[2:])


def full(placed: Layout | None, T: int, chunk: int, device: torch.device) -> Tensor:
    """bool `[N, B or 1, 1, C]`: the slots that hold a token."""
    if placed is not None:
        return placed.full_NBC[:, :, None]
    return (torch.arange(-(-T // chunk) * chunk, device=device) < T).view(-1, 1, 1, chunk)
