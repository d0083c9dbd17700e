"""How an op crosses from rank to rank, written once for all ops.

An op is a function of streams of tokens, per-head parameters and a state (`Call`), run over a stretch of time. Split over ranks:

| | the op then sees | exchanged per pass |
|---|---|---|
| heads | all tokens of its heads, and of the groups that they read: all-to-all before and after (`dealing.py`) | the streams |
| state | its own tokens, from a state composed of the summaries of the ranks before | the summaries, whatever the length |
| pipelined | its own tokens, from the state of the rank before, row by row of the batch, waiting for it | the states |
| halo | its own tokens, from the state of the rank before, which depends on few tokens before its end | the last tokens |
| ring | its own queries, with keys and values of one rank before it after the other (`attention.py`, `ring.py`) | keys, values |

So a mixer knows nothing of ranks, and an op does what it does on one.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from llm.parallel import collectives
from llm.parallel.dealing import Deal, deal
from llm.parallel.plan import Op, choose
from llm.parallel.ranks import Ranks

Tensors = tuple[Tensor, ...]
# of the batch, for each rank of a pipeline
PARTS = 2
# which stream has the outputs' shape, of ops that choose how to cross by what they send
OUTPUTS_LIKE = {"linear": 2, "mlstm": 2, "scan": 0, "elementwise": 0}


@dataclass(frozen=True)
class Call:
    """An op and what it runs on.

    heads: H. tokens: streams `[B, T, H, ...]`, or of G groups instead of H, G dividing H. per_head: parameters `[H, ...]`. state:
    what the op carries, batch first; head_dims: which dimension of each counts heads, None: none does.
    run: (tokens, per_head, state, stretch) -> (outputs `[B, T, H, ...]`, the state behind them).
    """

    heads: int
    tokens: Tensors
    per_head: Tensors
    state: Tensors
    head_dims: Sequence[int | None]
    run: Callable[[Tensors, Tensors, Tensors, Any], tuple[Tensors, Tensors]]


Crossed = tuple[Tensors, Tensors]
ByState = Callable[[Ranks], Crossed]


def op_of(name: str, family: str, call: Call, reach: int | None = 0, affine: bool = True, transition: int = 0) -> Op:
    """The op before it has run: its outputs' numbers are those of the stream that they are like, or not known yet."""
    per_token = tuple((x.shape[2], numbers(x[0, 0]) // x.shape[2]) for x in call.tokens)
    outputs = prod(per_token[OUTPUTS_LIKE[family]]) if family in OUTPUTS_LIKE else 0
    return Op(name, family, call.heads, reach, affine, sum(numbers(x[0]) for x in call.state), transition, per_token, outputs)


def numbers(x: Tensor) -> int:
    """Real ones."""
    return x.numel() * (2 if x.is_complex() else 1)


def cross(op: Op, call: Call, ranks: Ranks, here: Any, whole: Any, by_state: ByState | None) -> Crossed:
    """A recurrence's outputs on the rank's tokens, and the state behind the last of all.

    here, whole: the stretches of the rank's tokens, and of all. by_state: how it crosses by states; None: not at all.
    """
    crosses = choose(op, ranks.size, here.tokens, ranks.mode)
    if crosses == "heads":
        return over_heads(call, ranks, whole)
    if crosses == "state" and by_state is not None:
        return by_state(ranks)
    return pipelined(call, ranks, here)


def over_heads(call: Call, ranks: Ranks, whole: Any) -> Crossed:
    """whole: the stretch of all ranks' tokens. The state behind it comes out whole where it is asked for."""
    deals = partial(_deal, call.heads, ranks)
    tokens = tuple(_of_my_heads(x, deals(x, 2), ranks) for x in call.tokens)
    per_head = tuple(_mine(x, 0, deals(x, 0), ranks) for x in call.per_head)
    states = [(x, dim) for x, dim in zip(call.state, call.head_dims, strict=True)]
    state = tuple(x if dim is None else _mine(x, dim, deals(x, dim), ranks) for x, dim in states)
    outputs, after = call.run(tokens, per_head, state, whole)
    if ranks.states:
        after = tuple(
            x if dim is None else _picked(collectives.gather(x, ranks, dim), dim, deals(before, dim).first)
            for x, (before, dim) in zip(after, states, strict=True)
        )
    return tuple(collectives.to_time(y, ranks)[:, :, : call.heads] for y in outputs), after


def _deal(heads: int, ranks: Ranks, x: Tensor, dim: int) -> Deal:
    return deal(x.shape[dim], heads, ranks.size)


def _mine(x: Tensor, dim: int, of: Deal, ranks: Ranks) -> Tensor:
    """Of something that every rank has whole, what its heads read."""
    return _read(_picked(x, dim, of.groups[ranks.rank]), dim, of, ranks)


def _of_my_heads(x: Tensor, of: Deal, ranks: Ranks) -> Tensor:
    """All tokens of what the rank's heads read: `[B, n T, heads or groups, ...]`."""
    return _read(collectives.to_heads(_picked(x, 2, of.all_groups), ranks), 2, of, ranks)


def _read(x: Tensor, dim: int, of: Deal, ranks: Ranks) -> Tensor:
    return x if of.reads is None else _picked(x, dim, of.reads[ranks.rank])


def _picked(x: Tensor, dim: int, entries: Sequence[int]) -> Tensor:
    first = entries[0]
    if list(entries) == list(range(first, first + len(entries))):
        return x.narrow(dim, first, len(entries))
    return x.index_select(dim, torch.tensor(entries, device=x.device))


def pipelined(call: Call, ranks: Ranks, stretch: Any) -> Crossed:
    """stretch: of the rank's tokens; it has `rows(slice)`.

    Some rows of the batch after the other go from rank to rank. Of B rows in m parts, n ranks take (m + n - 1) / (m n) of the time
    of one rank: half of it at n = 2, m = inf; all of it for a batch of one row.
    """
    batch, done = call.tokens[0].shape[0], []
    rows_at_once = max(1, batch // (PARTS * ranks.size))
    for first in range(0, batch, rows_at_once):
        rows = slice(first, first + rows_at_once)
        state = collectives.receive(tuple(x[rows] for x in call.state), ranks)
        (y, *others), after = call.run(tuple(x[rows] for x in call.tokens), call.per_head, state, stretch.rows(rows))
        done.append(((collectives.send(y, after, ranks), *others), after))
    outputs, after = (tuple(map(torch.cat, zip(*parts, strict=True))) for parts in zip(*done, strict=True))
    return outputs, _final(after, ranks)


def by_state(call: Call, ranks: Ranks, stretch: Any, summary: Tensors, compose: Callable[[Tensors, Tensors], Tensors]) -> Crossed:
    """summary: of the rank's tokens, each batch first. compose: (state, a rank's summary) -> the state behind its tokens."""
    everyone = [collectives.gather(x[None], ranks, 0) for x in summary]
    state = call.state
    for rank in range(ranks.rank):
        state = compose(state, tuple(x[rank] for x in everyone))
    (y, *others), after = call.run(call.tokens, call.per_head, state, stretch)
    return (collectives.tied(y, *everyone), *others), _final(after, ranks)


def by_adjoint(
    call: Call, ranks: Ranks, stretch: Any, through: Tensor, decay: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor]
) -> Crossed:
    """By states, of an op whose one state h goes a h + b, entry by entry, through tokens, and enters the one output linearly.

    The op then goes once forwards from the true state and once backwards from its true gradient. Before the first of these only h
    behind a state of zero is made, before the second only what the outputs' gradient asks of h.

    through: `[B, ...]`, of which decay makes a, both without gradients. adjoint: of the output's gradient, what it asks of h.
    """
    (before,) = call.state
    with torch.no_grad():
        _, (update,) = call.run(call.tokens, call.per_head, (torch.zeros_like(before),), stretch)
        throughs, updates = (collectives.gather(x[None], ranks, 0) for x in (through, update))
        decays = [decay(x) for x in throughs]
        incoming = before
        for a, b in zip(decays[: ranks.rank], updates[: ranks.rank], strict=True):
            incoming = a * incoming + b
    # what is carried in has its gradient on the first rank
    (y,), (after,) = call.run(call.tokens, call.per_head, (before if ranks.first else incoming,), stretch)
    y, after = collectives.from_right(y, after, decays[ranks.rank :], adjoint, ranks)
    return (y,), _final((after,), ranks)


def by_halo(call: Call, ranks: Ranks, stretch: Any, tail: Tensors) -> Crossed:
    """tail: the state behind the rank's tokens, if it depends on them alone."""
    left = tuple(collectives.from_left(x, ranks) for x in tail)
    (y, *others), after = call.run(call.tokens, call.per_head, call.state if ranks.first else left, stretch)
    return (collectives.tied(y, *left), *others), _final(after, ranks)


def _final(after: Tensors, ranks: Ranks) -> Tensors:
    return tuple(collectives.from_last(x, ranks) for x in after) if ranks.states else after
