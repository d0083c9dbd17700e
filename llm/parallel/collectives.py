"""What ranks exchange, differentiable: the gradient of a rank's loss reaches the inputs of all ranks.

A value that several ranks use gets the sum of their gradients. Every function is called by all ranks of the group in one order,
forwards because they run one program. Backwards too: of the nodes that are ready, autograd takes the one that was made last, and
what a node waits for was made after it; so the nodes run in the reverse of the order in which the program made them, on every rank,
as long as each is reached on every rank. `tied` sees to that where a rank has no use for what it was given; `loss.backward()` does,
but not `torch.autograd.grad`, which leaves out what leads to none of its inputs.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from llm.parallel.ranks import Ranks


def to_heads(x_BTHx: Tensor, ranks: Ranks) -> Tensor:
    """`[B, T, H, ...]` of each rank's tokens -> `[B, n T, H / n, ...]`, all tokens of its heads (Ulysses, arXiv:2309.14509)."""
    return _Exchange.apply(x_BTHx, ranks, 2, 1)


def to_time(x_BTHx: Tensor, ranks: Ranks) -> Tensor:
    """The inverse of `to_heads`."""
    return _Exchange.apply(x_BTHx, ranks, 1, 2)


def gather(x: Tensor, ranks: Ranks, dim: int) -> Tensor:
    """Every rank's x, joined along `dim` in the order of ranks."""
    return _bytes(x, lambda y: _Gather.apply(y, ranks, dim))


def _bytes(x: Tensor, exchange: Callable[[Tensor], Tensor]) -> Tensor:
    """Truth values and complex numbers as what every backend sends."""
    if x.dtype == torch.bool:
        return exchange(x.view(torch.uint8)).view(torch.bool)
    if x.is_complex():
        return torch.view_as_complex(exchange(torch.view_as_real(x).contiguous()))
    return exchange(x)


def from_left(x: Tensor, ranks: Ranks) -> Tensor:
    """The x of the rank before; zeros on the first."""
    return _bytes(x, lambda y: _Shift.apply(y, ranks, 1))


def from_last(x: Tensor, ranks: Ranks) -> Tensor:
    """The last rank's x."""
    return _bytes(x, lambda y: _FromLast.apply(y, ranks))


def receive(state: tuple[Tensor, ...], ranks: Ranks) -> tuple[Tensor, ...]:
    """What the rank before gives to `send`, waiting for it; `state`, whose shapes it has, on the first rank."""
    # backward must come by also where nothing that was passed in wants a gradient
    anchor = torch.zeros((), requires_grad=torch.is_grad_enabled())
    return _Receive.apply(ranks, anchor, *state)


def send(y: Tensor, state: tuple[Tensor, ...], ranks: Ranks) -> Tensor:
    """Give `state` to the next rank. Returns y, through which the next rank's gradient comes back: use that, not the one passed."""
    return _Send.apply(ranks, y, *state)


def from_right(
    y: Tensor, after: Tensor, decays: Sequence[Tensor], adjoint: Callable[[Tensor], Tensor], ranks: Ranks
) -> tuple[Tensor, Tensor]:
    """(y, after), where the gradient of `after`, the state behind the rank's tokens, is what all later ranks ask of it.

    decays: of this rank and the later ones, what the state is multiplied by. adjoint: y's gradient -> what it asks of the state
    before the rank's tokens. Only the last rank's `after` may have a gradient of its own.
    """
    return _FromRight.apply(y, after, ranks, adjoint, *decays)


def tied(y: Tensor, *shared: Tensor) -> Tensor:
    """y, which makes every rank come by in the backward of what they exchanged, also one that had no use for it."""
    return _Tied.apply(y, *shared)


def _all_to_all(parts: list[Tensor], ranks: Ranks) -> list[Tensor]:
    """Part k goes to rank k; returns what they sent. All parts have one shape."""
    sent = torch.stack([part.contiguous() for part in parts])
    got = torch.empty_like(sent)
    dist.all_to_all_single(got, sent, group=ranks.group)
    return list(got.unbind())


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, ranks, split, join):
        ctx.ranks, ctx.dims = ranks, (split, join)
        return torch.cat(_all_to_all(list(x.chunk(ranks.size, split)), ranks), join)

    @staticmethod
    def backward(ctx: Any, dy):
        split, join = ctx.dims
        return torch.cat(_all_to_all(list(dy.chunk(ctx.ranks.size, join)), ctx.ranks), split), None, None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, ranks, dim):
        ctx.ranks, ctx.dim = ranks, dim
        return _gathered(x, ranks, dim)

    @staticmethod
    def backward(ctx: Any, dy):
        # a reduce-scatter, summed here in the order of ranks
        parts = _all_to_all(list(dy.chunk(ctx.ranks.size, ctx.dim)), ctx.ranks)
        return sum(parts[1:], parts[0]), None, None


def _gathered(x: Tensor, ranks: Ranks, dim: int) -> Tensor:
    x = x.contiguous()
    parts = [torch.empty_like(x) for _ in range(ranks.size)]
    dist.all_gather(parts, x, group=ranks.group)
    return torch.cat(parts, dim)


class _FromRight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y, after, ranks, adjoint, *decays):
        ctx.ranks, ctx.adjoint = ranks, adjoint
        ctx.save_for_backward(*decays)
        return y.view_as(y), after.view_as(after)

    @staticmethod
    def backward(ctx: Any, dy, dafter):
        own, *later = ctx.saved_tensors
        asked = ctx.adjoint(dy) + own.conj() * dafter
        everyone = _bytes(asked[None], lambda x: _gathered(x, ctx.ranks, 0)).unbind()
        for a, more in zip(later[::-1], everyone[: ctx.ranks.rank : -1], strict=True):
            dafter = a.conj() * dafter + more
        return dy, dafter, None, None, None, *(None for _ in later)


class _Tied(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y, *shared):
        ctx.like = [torch.empty_like(x, device="meta") for x in shared]
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, dy):
        return dy, *(torch.zeros_like(x, device=dy.device) if x.is_floating_point() or x.is_complex() else None for x in ctx.like)


class _Shift(torch.autograd.Function):
    """To the next rank (step 1), backwards to the one before (-1)."""

    @staticmethod
    def forward(ctx: Any, x, ranks, step):
        ctx.ranks, ctx.step = ranks, step
        return shifting(x, ranks, step)()

    @staticmethod
    def backward(ctx: Any, dy):
        return shifting(dy, ctx.ranks, -ctx.step)(), None, None


def shifting(x: Tensor, ranks: Ranks, step: int) -> Callable[[], Tensor]:
    """Sends x to the rank `step` further on. What is returned waits for what the one as far before sent; zeros where none is.

    Not differentiable.
    """
    size, to, origin = x.numel(), ranks.rank + step, ranks.rank - step
    out_sizes = [size * (k == origin) for k in range(ranks.size)]
    in_sizes = [size * (k == to) for k in range(ranks.size)]
    got = x.new_empty(sum(out_sizes))
    sent = x.contiguous().flatten() if sum(in_sizes) else x.new_empty(0)
    work = dist.all_to_all_single(got, sent, out_sizes, in_sizes, group=ranks.group, async_op=True)

    def wait() -> Tensor:
        work.wait()
        return got.view_as(x) if sum(out_sizes) else torch.zeros_like(x)

    return wait


class _FromLast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x, ranks):
        ctx.ranks = ranks
        x = x.contiguous().clone()
        dist.broadcast(x, ranks.globally(ranks.size - 1), group=ranks.group)
        return x

    @staticmethod
    def backward(ctx: Any, dy):
        dy = dy.contiguous().clone()
        dist.all_reduce(dy, group=ctx.ranks.group)
        return dy if ctx.ranks.last else torch.zeros_like(dy), None


class _Receive(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ranks, anchor, *state):
        ctx.ranks = ranks
        if ranks.first:
            return tuple(x.clone() for x in state)
        return _receive(state, ranks, -1)

    @staticmethod
    def backward(ctx: Any, *dstate):
        if ctx.ranks.first:
            return None, None, *dstate
        _send(dstate, ctx.ranks, -1)
        return None, None, *(None for _ in dstate)


class _Send(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ranks, y, *state):
        ctx.ranks = ranks
        ctx.like = [torch.empty_like(x, device="meta") for x in state]
        if not ranks.last:
            _send(state, ranks, 1)
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, dy):
        if ctx.ranks.last:
            return None, dy, *(None for _ in ctx.like)
        like = [torch.empty_like(x, device=dy.device) for x in ctx.like]
        return None, dy, *_receive(like, ctx.ranks, 1)


def _send(tensors: Any, ranks: Ranks, step: int) -> None:
    for x in tensors:
        dist.send(x.contiguous(), ranks.globally(ranks.rank + step), group=ranks.group)


def _receive(like: Any, ranks: Ranks, step: int) -> tuple[Tensor, ...]:
    got = tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in like)
    for x in got:
        dist.recv(x, ranks.globally(ranks.rank + step), group=ranks.group)
    return got
