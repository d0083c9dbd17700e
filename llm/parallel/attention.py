"""How attention crosses from rank to rank: over heads, by a halo of its window, or with all keys and values on every rank.

Its state is the cache: keys, values `[B, S, G, ...]`, and which of them belong to the document at hand.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from llm.docs import Stretch
from llm.parallel import collectives, crossing
from llm.parallel.crossing import Call, Tensors
from llm.parallel.plan import Op, choose
from llm.parallel.ranks import Ranks


def cross(op: Op, call: Call, ranks: Ranks, here: Stretch, whole: Stretch, window: int | None) -> tuple[Tensor, Tensors]:
    """(the rank's outputs, the cache behind the last token). here, whole: the rank's tokens, and those of all."""
    crosses = choose(op, ranks.size, here.tokens, ranks.mode)
    if crosses == "gathered":
        return _gathered(call, ranks, here, whole, window)
    if crosses == "heads":
        (y,), after = crossing.over_heads(call, ranks, whole)
        return y, after
    _, k, v = call.tokens
    (y,), after = crossing.by_halo(call, ranks, here, cache(k, v, call.state[2][:, :0], here, window))
    return y, after


def _gathered(call: Call, ranks: Ranks, here: Stretch, whole: Stretch, window: int | None) -> tuple[Tensor, Tensors]:
    (q, *own), (k_past, v_past, valid) = call.tokens, call.state
    k, v = (collectives.gather(x, ranks, 1) for x in own)
    before = Stretch(whole.docs, whole.offset_B, 0, here.first, whole.fresh)
    past = (k_past, v_past, valid)
    if before.tokens:
        near = slice(0 if window is None else max(0, before.tokens - window + 1), before.tokens)
        past = (
            torch.cat([k_past, k[:, near]], 1),
            torch.cat([v_past, v[:, near]], 1),
            torch.cat([valid & before.unbroken_B(valid)[:, None], before.in_last_BT(valid)[:, near]], 1),
        )
    (y,), _ = call.run((q, *own), call.per_head, past, here)
    after = cache(torch.cat([k_past, k], 1), torch.cat([v_past, v], 1), valid, whole, window)
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
