"""What goes over the wire: counted at the process group, as predicted from shapes alone, and for states whatever the length."""

import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from llm.mixers import MIXERS
from llm.mixers.ops import ops_of
from llm.parallel import MODES, Ranks
from llm.parallel.plan import choose, sent, sent_back
from llm.parallel.traffic import Traffic
from llm.testing import run_ranks

sys.path.append(str(Path(__file__).resolve().parents[1] / "contract"))
from cases import label
from families import FAMILIES
from laws import WIDTH

from tests.parallel.test_mixers import CASES, FEW, applies

pytestmark = [pytest.mark.multirank, pytest.mark.timeout(300)]
BATCH, LENGTHS = 2, (96, 192)
DOUBLE = 8


@patch.dict(MIXERS, FAMILIES)
def measured(rank: int, size: int, only: list[int]) -> dict[tuple[str, str, int], tuple[int, int]]:
    """By case, mode and length: bytes that this rank sends forwards, and backwards."""
    found = {}
    for case in (CASES[k] for k in only):
        mixer = case.mixer()
        for mode in MODES:
            for length in LENGTHS if applies(case, mode, size) else ():
                x = torch.randn(BATCH, length // size, WIDTH, dtype=torch.float64, requires_grad=True)
                with Traffic() as traffic:
                    y, _ = mixer(x, None, None, Ranks(rank, size, mode=mode, states=False))
                    forward = traffic.total
                    y.sum().backward()
                found[label(case), mode, length] = (forward, traffic.total - forward)
    return found


@pytest.mark.parametrize(
    ("size", "only"),
    [(2, FEW), *(pytest.param(size, range(len(CASES)), marks=pytest.mark.slow) for size in (2, 3, 4))],
    ids=["2", "2-all", "3-all", "4-all"],
)
@patch.dict(MIXERS, FAMILIES)
def test_bytes_are_those_predicted(size: int, only: list[int]) -> None:
    by_rank = run_ranks(measured, size, size, list(only), timeout=280)
    constant = 0
    for case in (CASES[k] for k in only):
        ops = ops_of(case.config(), WIDTH)
        for mode in (mode for mode in MODES if applies(case, mode, size)):
            forward, used = {}, set()
            for length in LENGTHS:
                tokens = length // size
                crossings = [choose(op, size, tokens, mode) for op in ops]
                used |= set(crossings)
                due, due_back = (
                    BATCH * sum(way(op, c, size, tokens, DOUBLE, DOUBLE) for op, c in zip(ops, crossings, strict=True))
                    for way in (sent, sent_back)
                )
                forward[length], backward = (sum(found[label(case), mode, length][k] for found in by_rank) for k in (0, 1))
                what = f"{label(case)}, {mode}, {length} tokens: {crossings}"
                assert forward[length] == due, what
                # which tokens a window may see has no gradient, and neither has a decay that is not learned
                pairs = list(zip(ops, crossings, strict=True))
                truths = sum(BATCH * (size - 1) * (op.reach or 0) for op, c in pairs if c == "halo" and op.family == "attention")
                decays = sum(BATCH * size * (size - 1) * op.transition * DOUBLE for op, c in pairs if c == "state")
                assert backward == due_back - truths - (decays if case.kind == "retention" else 0), what
            if not {"heads", "ring"} & used:
                constant += 1
                assert len(set(forward.values())) == 1, f"{label(case)}, {mode} sends more for more tokens"
    assert constant > len(only) // 2
