"""Sequences of any length over ranks, where nobody can choose it: evaluation and prefill. (Training takes a multiple.)

Nothing later touches what is earlier, so tokens padded behind the last change no output; but a state behind them would be wrong.
Where it is wanted, the few tokens that the ranks cannot share alike are run by all of them, from the true state.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F

from llm.docs import Docs
from llm.ops.cross_entropy import IGNORED
from llm.parallel import collectives
from llm.parallel.ranks import Ranks
from llm.state import State

# (tokens, state, docs, ranks) -> (outputs [B, T, ...], the state behind them)
Run = Callable[[Tensor, State | None, Docs | None, Ranks | None], tuple[Tensor, State]]


class Share(NamedTuple):
    """A rank's tokens and labels, and the documents of the whole sequence, padded."""

    tokens_BT: Tensor
    labels_BT: Tensor
    docs: Docs | None


def padded(tokens_BT: Tensor, labels_BT: Tensor, docs: Docs | None, ranks: Ranks) -> Share:
    """A rank's share of a whole sequence, with labels that are not scored behind its end. Ask for no state (`Ranks.states`)."""
    each = -(-tokens_BT.shape[1] // ranks.size)
    missing = each * ranks.size - tokens_BT.shape[1]
    here = slice(ranks.rank * each, (ranks.rank + 1) * each)
    tokens_BT, labels_BT = (F.pad(x, (0, missing), value=fill) for x, fill in ((tokens_BT, 0), (labels_BT, IGNORED)))
    docs = None if docs is None else Docs(F.pad(docs.starts_BT, (0, missing)))
    return Share(tokens_BT[:, here], labels_BT[:, here], docs)


def prefill(run: Run, tokens_BT: Tensor, state: State | None, docs: Docs | None, ranks: Ranks, least: int) -> tuple[Tensor, State]:
    """(the last token's outputs `[B, ...]`, the state behind it), both on every rank, of a whole sequence.

    least: tokens that a rank must hold for the model to run on it, what its convolutions look back; fewer are run by every rank.
    """
    assert ranks.states, "the state behind the shared tokens is what the others are run from"
    each = tokens_BT.shape[1] // ranks.size
    shared = each * ranks.size if each >= max(1, least) else 0
    last_B = None
    if shared:
        mine = tokens_BT[:, ranks.rank * each : (ranks.rank + 1) * each]
        y, state = run(mine, state, None if docs is None else docs[:shared], ranks)
        last_B = collectives.from_last(y[:, -1], ranks)
    if shared < tokens_BT.shape[1]:
        y, state = run(tokens_BT[:, shared:], state, None if docs is None else docs[shared:], None)
        last_B = y[:, -1]
    assert last_B is not None, "a sequence without tokens"
    assert state is not None
    return last_B, state
