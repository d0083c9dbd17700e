"""How attention crosses from rank to rank: over heads, by a halo of its window, or with keys and values that go round a ring.

Its state is the cache: keys, values `[B, S, G, ...]`, and which of them belong to the document at hand.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from llm.docs import Stretch
from llm.ops.attention.tiles import Scores
from llm.parallel import collectives, crossing
from llm.parallel.crossing import Call, Tensors
from llm.parallel.plan import Op, choose
from llm.parallel.ranks import Ranks
from llm.parallel.ring import ring


def cross(op: Op, call: Call, ranks: Ranks, here: Stretch, whole: Stretch, scores: Scores) -> tuple[Tensor, Tensors]:
    """(the rank's outputs, the cache behind the last token). here, whole: the rank's tokens, and those of all."""
    crosses = choose(op, ranks.size, here.tokens, ranks.mode)
    if crosses == "ring":
        return _ring(call, ranks, whole, scores)
    if crosses == "heads":
        (y,), after = crossing.over_heads(call, ranks, whole)
        return y, after
    _, k, v = call.tokens
    (y,), after = crossing.by_halo(call, ranks, here, cache(k, v, call.state[2][:, :0], here, scores.window))
    return y, after


def _ring(call: Call, ranks: Ranks, whole: Stretch, scores: Scores) -> tuple[Tensor, Tensors]:
    (q, k, v), (k_past, v_past, valid) = call.tokens, call.state
    prefix = (call.per_head[0].transpose(0, 1), call.per_head[1].transpose(0, 1)) if call.per_head else None
    y = ring(q, k, v, (k_past, v_past, valid), prefix, ranks, whole, scores)
    if not ranks.states:
        return y, call.state
    k, v = (collectives.gather(x, ranks, 1) for x in (k, v))
    after = cache(torch.cat([k_past, k], 1), torch.cat([v_past, v], 1), valid, whole, scores.window)
    return collectives.tied(y, k, v), after


def cache(k: Tensor, v: Tensor, valid: Tensor, stretch: Stretch, window: int | None) -> tuple[Tensor, Tensor, Tensor]:
    """The last window - 1 keys and values of an earlier cache, of which `valid` tells, and the stretch behind it; or all."""
    valid = torch.cat([valid & stretch.unbroken_B(valid)[:, None], stretch.in_last_BT(valid)], 1)
    return (k, v, valid) if window is None else (_last(k, window - 1), _last(v, window - 1), _last(valid, window - 1))


def _last(x: Tensor, count: int) -> Tensor:
    """The last `count` along dimension 1, padded on the left with zeros when there are fewer."""
    missing = count - x.shape[1]
    if missing > 0:
        return F.pad(x, (0, 0) * (x.ndim - 2) + (missing, 0))
    return x[:, x.shape[1] - count :]
