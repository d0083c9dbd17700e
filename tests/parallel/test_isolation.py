"""Documents stay apart across ranks, bit for bit: what lies before a start, also on other ranks, changes nothing at or after it.

Of the documents at least three are in every row, one straddles each cut, one spans all four ranks, and no length is a multiple of a
chunk. Planted faults show what the law finds.
"""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from llm.docs import Stretch
from llm.mixers import MIXERS
from llm.ops import loops
from llm.ops.linear import summary as linear_summary
from llm.ops.scan import loop as scan_loop
from llm.ops.scan import summary as scan_summary
from llm.parallel import Mode, Ranks, ring
from llm.testing import run_ranks

sys.path.append(str(Path(__file__).resolve().parents[1] / "contract"))
from cases import label
from families import FAMILIES
from laws import Case, carried, leaves, streams

from tests.parallel.test_mixers import CASES, STARTS, documents, modes_of, tokens_over

pytestmark = [pytest.mark.multirank, pytest.mark.timeout(1000)]

# a start of each row: the last one, and one just before a cut
BEHIND = (180, 149)
# early in a document that goes on over three cuts, and at a cut; the last ones
MORE = [(45, 100), (38, 99), (180, 151)]
assert all(start in starts for at in (BEHIND, *MORE) for start, starts in zip(at, STARTS, strict=True))


def found_behind(case: Case, ranks: Ranks, seed: int, at: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """What a rank finds at and after the starts `at`, where all that lies before them is drawn by `seed`."""
    tokens = tokens_over(ranks.size)
    each = tokens // ranks.size
    mine = slice(ranks.rank * each, (ranks.rank + 1) * each)
    mixer, x, behind = case.mixer(), streams(tokens=tokens), torch.zeros(2, tokens, 1, dtype=torch.float64)
    for row, start in enumerate(at):
        x[row, :start] = streams(seed, tokens)[row, :start]
        behind[row, start:] = 1
    x, behind = x[:, mine].clone().requires_grad_(), behind[:, mine]
    state = leaves(carried(mixer, seed))
    y, final = mixer(x, state, documents()[:tokens], ranks)
    # the state behind is judged by what is made of it: a cache also holds what nobody sees any more
    after, _ = mixer(streams(5, 3), final)
    loss = (y * behind * streams(3, tokens)[:, mine]).sum() + after.sum() / ranks.size
    loss.backward()
    assert x.grad is not None
    found = {"y": y.detach() * behind, "y after": after.detach(), "dx": x.grad}
    found |= {f"d {name}": p.grad for name, p in mixer.named_parameters() if p.grad is not None}
    found |= {f"dx before, {seed}": x.grad * (1 - behind)}
    return found | {f"d incoming {name}, {seed}": v.grad for name, v in state.items() if v.grad is not None}


def leak(case: Case, ranks: Ranks, at: tuple[int, ...]) -> str:
    """What crosses a start; empty where nothing does."""
    one, other = (found_behind(case, ranks, seed, at) for seed in (11, 12))
    nothing = [name for name, value in (one | other).items() if name not in one.keys() & other.keys() and value.any()]
    differ = [name for name in one if name in other and not torch.equal(one[name], other[name])]
    return ", ".join(nothing + differ)


@patch.dict(MIXERS, FAMILIES)
def leaks(rank: int, size: int, only: list[int], places: list[tuple[int, ...]]) -> dict[str, str]:
    found = {}
    for case in (CASES[k] for k in only):
        for mode in modes_of(case, size, tokens_over(size)):
            for at in places:
                found[f"{label(case)} {mode} {at}"] = leak(case, Ranks(rank, size, mode=mode), at)
    return found


def halo_ignores_starts() -> AbstractContextManager:
    return patch.object(Stretch, "in_last_BT", lambda self, like: torch.ones(len(like), self.tokens, dtype=torch.bool))


def state_passes_through_starts() -> AbstractContextManager:
    return patch.object(linear_summary, "_through", lambda total, starts: total)


def update_reaches_over_starts() -> AbstractContextManager:
    return patch.object(linear_summary, "_reaching", lambda weight, starts: weight)


def steps_ignore_starts() -> AbstractContextManager:
    right = scan_summary.steps
    return patch.object(scan_summary, "steps", lambda dt, starts: right(dt, None))


def adjoint_ignores_starts() -> AbstractContextManager:
    wrong = lambda *streams: scan_loop.scan_adjoint(*streams[:5], None)  # noqa: E731
    return patch.dict(loops.LOOPS, {"scan adjoint": (scan_loop.SOURCE, wrong)})


def ring_ignores_documents() -> AbstractContextManager:
    right = ring._Exchange.of_rank

    def wrong(self, rank):
        at = right(self, rank)
        return replace(at, document_BS=torch.zeros_like(at.document_BS))

    return patch.object(ring._Exchange, "of_rank", wrong)


def cache_is_kept_over_starts() -> AbstractContextManager:
    return patch.object(Stretch, "unbroken_B", lambda self, like: torch.ones(len(like), dtype=torch.bool))


FAULTS: dict[Callable[[], AbstractContextManager], tuple[Case, Mode]] = {
    halo_ignores_starts: (Case("mamba", ()), "auto"),
    state_passes_through_starts: (Case("retention", (("heads", 2),)), "state"),
    update_reaches_over_starts: (Case("retention", (("heads", 2),)), "state"),
    steps_ignore_starts: (Case("mamba", ()), "state"),
    adjoint_ignores_starts: (Case("mamba", ()), "state"),
    ring_ignores_documents: (Case("attention", (("heads", 2),)), "auto"),
    cache_is_kept_over_starts: (Case("attention", (("heads", 2),)), "auto"),
}


def leaks_with_faults(rank: int, size: int) -> dict[str, str]:
    found = {}
    for fault, (case, mode) in FAULTS.items():
        with fault():
            found[fault.__name__] = leak(case, Ranks(rank, size, mode=mode), BEHIND)
    return found


KINDS = [*range(len(MIXERS)), *range(len(CASES) - len(FAMILIES), len(CASES))]
ALL = list(range(len(CASES)))


def test_nothing_crosses_a_start(four_ranks: list) -> None:
    for rank, found in enumerate(four_ranks):
        no_leaks(rank, found["isolation"], len(KINDS))


def test_planted_faults_are_found(four_ranks: list) -> None:
    for name in FAULTS:
        assert any(found["faults"][name.__name__] for found in four_ranks), f"{name.__name__} went unnoticed"


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3, 4])
def test_nothing_crosses_any_start(size: int) -> None:
    for rank, found in enumerate(run_ranks(leaks, size, size, ALL, [BEHIND, *MORE], timeout=480)):
        no_leaks(rank, found, len(ALL))


def no_leaks(rank: int, found: dict[str, str], least: int) -> None:
    assert len(found) >= least
    for name, what in found.items():
        assert not what, f"{name}, rank {rank}: {what} crosses a start"
