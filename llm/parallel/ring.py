"""Attention whose keys and values go round: at step s every rank looks at those of the rank s before it.

A rank's queries take in one block of keys after the other under a running maximum; backward is a second pass, in which the
gradients of a block go straight back to its rank (Ring Attention, arXiv:2310.01889; here a block goes to each rank from its own, so
none is passed on by a rank that has no use for it). Attention is causal: what lies behind, or wholly before a window, is neither
sent nor looked at, so of n ranks the last has 2 n - 1 times the work of the first.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from llm.docs import Stretch
from llm.ops.attention.tiles import Keys, Places, Scores, attention, prefix_run
from llm.parallel import collectives
from llm.parallel.plan import ring_steps
from llm.parallel.ranks import Ranks


def ring(
    q_BTHK: Tensor,
    k_BTGK: Tensor,
    v_BTGV: Tensor,
    past: tuple[Tensor, Tensor, Tensor],
    prefix: tuple[Tensor, Tensor] | None,
    ranks: Ranks,
    whole: Stretch,
    scores: Scores,
) -> Tensor:
    """The outputs `[B, T, H, V]` of the rank's tokens. past: the cache before the sequence; prefix: as in `naive.attention`."""
    k_past, v_past, valid = past
    tokens, rows = q_BTHK.shape[1], len(q_BTHK)
    ids = q_BTHK.new_zeros(rows, whole.tokens, dtype=torch.long) if whole.docs is None else whole.docs.id_BT
    exchange = _Exchange(ranks, Places(ids, 0), tokens, None if scores.window is None else scores.window - 1)
    at = exchange.of_rank(ranks.rank)
    runs = [Keys(k_BTGK, v_BTGV, at), *prefix_run(prefix, k_BTGK)]
    if k_past.shape[1]:
        runs.append(Keys(k_past, v_past, Places(valid.long() - 1, -k_past.shape[1])))
    return attention(q_BTHK, at, runs, scores, exchange)


class _Exchange:
    """Keys and values of the ranks before this one, a block per step: the next is under way while one is looked at."""

    def __init__(self, ranks: Ranks, at: Places, tokens: int, reach: int | None):
        self.ranks, self.at, self.tokens = ranks, at, tokens
        self.steps = ring_steps(ranks.size, tokens, reach)

    def of_rank(self, rank: int) -> Places:
        return self.at[rank * self.tokens : (rank + 1) * self.tokens]

    def runs(self, k_BTGK: Tensor, v_BTGV: Tensor) -> Iterator[tuple[int, Keys | None]]:
        both = torch.cat([k_BTGK, v_BTGV], -1)
        coming = collectives.shifting(both, self.ranks, 1) if self.steps else None
        for step in range(1, self.steps + 1):
            assert coming is not None
            block = coming()
            if step < self.steps:
                coming = collectives.shifting(both, self.ranks, step + 1)
            origin = self.ranks.rank - step
            if origin < 0:
                yield step, None
            else:
                k, v = block.split([k_BTGK.shape[-1], v_BTGV.shape[-1]], -1)
                yield step, Keys(k, v, self.of_rank(origin))

    def home(self, step: int, dk_BTGK: Tensor, dv_BTGV: Tensor) -> tuple[Tensor, Tensor]:
        back = collectives.shifting(torch.cat([dk_BTGK, dv_BTGV], -1), self.ranks, -step)()
        dk, dv = back.split([dk_BTGK.shape[-1], dv_BTGV.shape[-1]], -1)
        return dk, dv
