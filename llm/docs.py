"""Documents packed into a batch: one object with every spelling of their boundaries.

The isolation law: where a document starts at t, nothing before t — earlier tokens, the incoming state, a convolution's
tail, rotary positions — may touch t or later, exactly (zero, not small).
"""

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.nn import functional as F


class Segments(NamedTuple):
    """A batch as variable-length kernels take it: its rows one after the other, cut at every row and at every start.

    cu_seqlens: int32 `[N + 1]`, where the N segments end in the flattened batch; host: the same in host memory. max_len: tokens
    of the longest. first_B, last_B: the numbers of each row's first and last segment. begins_B: whether the row starts a document.
    """

    cu_seqlens: Tensor
    host: Tensor
    max_len: int
    first_B: Tensor
    last_B: Tensor
    begins_B: Tensor

    def entering(self, state_Bx: Tensor) -> Tensor:
        """The state before each segment, `[N, ...]`: a row's own before its first, unless a document starts there; else zero."""
        begins = self.begins_B.view(-1, *(1,) * (state_Bx.ndim - 1))
        states = state_Bx.new_zeros(len(self.host) - 1, *state_Bx.shape[1:])
        return states.index_copy(0, self.first_B, torch.where(begins, 0, state_Bx))

    def leaving(self, state_Nx: Tensor) -> Tensor:
        """The state behind each row, `[B, ...]`, of those behind each segment."""
        return state_Nx.index_select(0, self.last_B)


class Docs:
    """Document boundaries of a `[B, T]` batch.

    A row whose first token does not start a document continues the one that its incoming state belongs to.

    Args:
        starts_BT: bool; True where a document starts. host_BT: the same in host memory, where it is known: boundaries are then
            told without waiting for the device.
    """

    def __init__(self, starts_BT: Tensor, host_BT: Tensor | None = None):
        assert (starts_BT.dtype, starts_BT.ndim) == (torch.bool, 2), "starts_BT is a bool tensor [B, T]"
        self.starts_BT = starts_BT
        self.host_BT = starts_BT if starts_BT.device.type == "cpu" else host_BT
        self._most_chunks: dict[tuple[int, bool], int] = {}

    @classmethod
    def from_lengths(cls, lengths: Sequence[Sequence[int]]) -> "Docs":
        """Rows of document lengths; every row adds up to the same T, and each starts with a document."""
        totals = {sum(row) for row in lengths}
        assert len(totals) == 1, f"rows of different lengths: {sorted(totals)}"
        starts = torch.zeros(len(lengths), totals.pop(), dtype=torch.bool)
        for b, row in enumerate(lengths):
            t = 0
            for n in row:
                starts[b, t] = True
                t += n
        return cls(starts)

    @property
    def shape(self) -> torch.Size:
        return self.starts_BT.shape

    def __getitem__(self, tokens: slice) -> "Docs":
        """The same documents seen through a slice of tokens."""
        return Docs(self.starts_BT[:, tokens], None if self.host_BT is None else self.host_BT[:, tokens])

    def rows(self, rows: slice) -> "Docs":
        return Docs(self.starts_BT[rows], None if self.host_BT is None else self.host_BT[rows])

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Docs":
        return Docs(self.starts_BT.to(device, non_blocking=non_blocking), self.host_BT)

    @cached_property
    def id_BT(self) -> Tensor:
        """int64: documents started so far in the row. 0 is the one continued from the incoming state."""
        return self.starts_BT.long().cumsum(1)

    @cached_property
    def since_start_BT(self) -> Tensor:
        """int64: tokens since the document's start, or since the batch's first token for the continued document."""
        t = torch.arange(self.shape[1], device=self.starts_BT.device)
        return t - torch.where(self.starts_BT, t, 0).cummax(1).values

    def position_BT(self, offset_B: Tensor) -> Tensor:
        """int64: each token's position in its document, when the continued one has `offset_B` tokens behind it."""
        return self.since_start_BT + torch.where(self.id_BT == 0, offset_B[:, None], 0)

    @cached_property
    def segments(self) -> Segments:
        """Reads the starts in host memory; from the device, and so waiting for it, only where they are nowhere else."""
        first_BT = F.pad(self._read_BT[:, 1:], (1, 0), value=True)
        ends = F.pad(first_BT.flatten().nonzero().flatten(), (0, 1), value=first_BT.numel()).int()
        behind_B = first_BT.sum(1).cumsum(0)
        last_B = behind_B - 1
        first_B = F.pad(behind_B[:-1], (1, 0))
        device = self.starts_BT.device
        max_len = int(ends.diff().max())
        return Segments(ends.to(device), ends, max_len, first_B.to(device), last_B.to(device), self.starts_BT[:, 0])

    @property
    def cut(self) -> bool:
        """Whether a document starts behind a row's first token."""
        return len(self.segments.host) - 1 > self.shape[0]

    @cached_property
    def most_starts(self) -> int:
        """Of a row. Reads as `segments` does."""
        return int(self._read_BT.sum(1).max())

    def most_chunks(self, size: int, fresh: bool) -> int:
        """Into how many chunks of `size` tokens, which count from documents' starts, a row falls at most. Reads as `segments` does.

        fresh: whether no token lies behind a row that goes on; else it is taken to begin with a chunk's last token, which makes
        the most of them: where it is in a chunk, the device alone knows. Without values (FakeTensor) no document starts.
        """
        if (size, fresh) not in self._most_chunks:
            starts = self._read_BT
            with unset_fake_temporarily(), torch.device("cpu"):
                at = torch.zeros(starts.shape, dtype=torch.bool) if isinstance(starts, FakeTensor) else starts
                t = torch.arange(at.shape[1])
                position = t - torch.where(at, t, 0 if fresh else 1 - size).cummax(1).values
                opens = position % size == 0
                self._most_chunks[size, fresh] = int((opens.sum(1) + ~opens[:, 0]).max())
        return self._most_chunks[size, fresh]

    @property
    def _read_BT(self) -> Tensor:
        """The starts, in host memory."""
        return self.starts_BT.cpu() if self.host_BT is None else self.host_BT

    @property
    def cu_seqlens(self) -> Tensor:
        """int32 `[documents + 1]`: ends of all segments of the flattened batch, as variable-length kernels take them."""
        return self.segments.cu_seqlens

    @property
    def max_len(self) -> int:
        """Tokens of the longest segment."""
        return self.segments.max_len


class Stretch:
    """Tokens that an op runs over at once: [first, first + tokens) of the sequence, or some rows of them.

    docs: of the whole sequence; None: no document starts in it. offset_B: the position behind which the sequence goes on. fresh:
    whether no token lies before it. part: whether the sequence goes on on other ranks, from whom gradients come to the state.
    """

    def __init__(self, docs: Docs | None, offset_B: Tensor, first: int, tokens: int, fresh: bool, part: bool = False):
        self.docs, self.offset_B, self.fresh = docs, offset_B, fresh and first == 0
        self.first, self.tokens, self.part = first, tokens, part
        # those of the stretch; the sequence's own object where the stretch is all of it, so that layers share what it holds
        self.documents = docs if docs is None or docs.shape[1] == tokens else docs[self.here]

    def rows(self, rows: slice) -> "Stretch":
        docs = None if self.docs is None else self.docs.rows(rows)
        return Stretch(docs, self.offset_B[rows], self.first, self.tokens, self.fresh, self.part)

    @property
    def here(self) -> slice:
        return slice(self.first, self.first + self.tokens)

    @property
    def starts_BT(self) -> Tensor | None:
        return None if self.documents is None else self.documents.starts_BT

    @property
    def position_BT(self) -> Tensor:
        """Each token's position in its document."""
        if self.docs is None:
            return self.offset_B[:, None] + torch.arange(self.first, self.first + self.tokens, device=self.offset_B.device)
        return self.docs.position_BT(self.offset_B)[:, self.here]

    @property
    def phase_BT(self) -> Tensor | None:
        """Positions, where chunks count from elsewhere than the first token."""
        return None if self.fresh and self.docs is None else self.position_BT

    def most_chunks(self, size: int) -> int:
        """Into how many chunks of `size` tokens a row falls at most: `Docs.most_chunks`."""
        if self.documents is not None:
            return self.documents.most_chunks(size, self.fresh)
        return -(-(self.tokens + (0 if self.fresh else size - 1)) // size)

    def in_last_BT(self, like: Tensor) -> Tensor:
        """bool: which tokens are of the document that the stretch ends in. like: `[B, ...]`, on the right device."""
        if self.docs is None:
            return torch.ones(len(like), self.tokens, dtype=torch.bool, device=like.device)
        ids = self.docs.id_BT[:, self.here]
        return ids == ids[:, -1:]

    def unbroken_B(self, like: Tensor) -> Tensor:
        """bool: whether no document starts in the stretch."""
        if self.docs is None:
            return torch.ones(len(like), dtype=torch.bool, device=like.device)
        return ~self.docs.starts_BT[:, self.here].any(1)
