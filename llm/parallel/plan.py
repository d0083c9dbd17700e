"""How an op crosses from rank to rank, and what that sends: decided from its shapes alone, so before anything runs."""

from typing import Literal, NamedTuple

from llm.parallel.dealing import deal, heads_each
from llm.parallel.ranks import Mode

Crossing = Literal["heads", "state", "pipelined", "halo", "ring"]


class Op(NamedTuple):
    """An op as a mixer calls it; numbers are of one sequence.

    heads: H. reach: tokens before its own that it looks at directly, None: all; 0 of recurrences. affine: whether its state
    crosses by summaries, or it has none but what it looks at. state, transition: numbers in the state, and in what multiplies it.
    streams: (groups, numbers per group and token) of each stream that is split over heads. outputs: numbers per token.
    """

    name: str
    family: str
    heads: int
    reach: int | None
    affine: bool
    state: int
    transition: int
    streams: tuple[tuple[int, int], ...]
    outputs: int


def choose(op: Op, size: int, tokens: int, mode: Mode) -> Crossing:
    """The crossing of an op over `size` ranks that hold `tokens` each.

    `auto`: a window by its halo, where a rank holds it; else attention over heads, where each rank gets one, or in a ring; a
    recurrence that is affine in its state by summaries or over heads, by what sends less; another one over heads, where each rank
    gets one, or else in a pipeline.
    """
    for_all = op.heads >= size
    if op.family == "conv":
        return "halo"
    if op.family == "attention":
        near = op.reach is not None and op.reach <= tokens
        if mode == "heads" or (mode == "auto" and for_all and not near):
            return "heads"
        return "halo" if near else "ring"
    if mode == "auto":
        over_heads, by_state = (sent(op, crossing, size, tokens) for crossing in ("heads", "state"))
        if op.affine and not (for_all and over_heads < by_state):
            return "state"
        return "heads" if for_all else "pipelined"
    return "pipelined" if mode == "state" and not op.affine else mode


def sent(op: Op, crossing: Crossing, size: int, tokens: int, stream_bytes: int = 2, state_bytes: int = 4) -> int:
    """Bytes that all ranks together send per sequence in a forward pass.

    tokens: of a rank. stream_bytes, state_bytes: of a number in the streams, and in the state.
    """
    others = size - 1
    if crossing == "heads":
        streams = sum(len(deal(groups, op.heads, size).all_groups) * width for groups, width in op.streams)
        outputs = size * heads_each(op.heads, size) * op.outputs // op.heads
        return others * tokens * (streams + outputs) * stream_bytes
    if crossing == "state":
        return size * others * (op.state + op.transition) * state_bytes
    if crossing == "pipelined":
        return others * op.state * state_bytes
    # of attention all streams but the queries
    looked_at = sum(groups * width for groups, width in op.streams[op.family == "attention" :])
    if crossing == "ring":
        steps = ring_steps(size, tokens, op.reach)
        return sum(size - step for step in range(1, steps + 1)) * tokens * looked_at * stream_bytes
    assert op.reach is not None
    # of a window, which tokens are of the document at hand goes along, a byte each
    return others * op.reach * (looked_at * stream_bytes + (op.family == "attention"))


def sent_back(op: Op, crossing: Crossing, size: int, tokens: int, stream_bytes: int = 2, state_bytes: int = 4) -> int:
    """The same of a backward pass: as much, but of a ring keys and values and their gradients, of a scan no transition."""
    if crossing == "state" and op.family in ("scan", "elementwise"):
        op = op._replace(transition=0)
    forward = sent(op, crossing, size, tokens, stream_bytes, state_bytes)
    return 2 * forward if crossing == "ring" else forward


def ring_steps(size: int, tokens: int, reach: int | None) -> int:
    """How many ranks before its own a rank looks at, of `size` with `tokens` each. reach: tokens; None: all."""
    return size - 1 if reach is None else min(size - 1, -(-reach // tokens))
