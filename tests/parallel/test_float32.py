"""In float32 a split sequence is as near to float64 as one rank is whose sums are taken in another order.

Other orders, all of one rank: the sequence in one pass; in 2 to 7 parts with the state carried, so that every sum over tokens is
cut as ranks cut it, and elsewhere; with the batch's rows turned round; each row alone. Of every tensor the largest of their errors
counts, twice; the error of one number, as a loss is, would be luck, so outputs are weighed in 16 ways.
"""

import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist

from llm.docs import Docs
from llm.mixers import MIXERS, Mixer
from llm.parallel import Ranks
from llm.testing import run_ranks

sys.path.append(str(Path(__file__).resolve().parents[1] / "contract"))
from cases import label
from families import FAMILIES
from laws import Case, streams

from tests.parallel.test_mixers import CASES, documents, modes_of, tokens_over

pytestmark = [pytest.mark.multirank, pytest.mark.timeout(1000)]
Found = dict[str, torch.Tensor]
KINDS = list(range(len(MIXERS)))


# parts of the sequence, and the rows that go together
ORDERS = (1, [[0, 1]]), (2, [[0, 1]]), (3, [[1, 0]]), (4, [[1, 0]]), (5, [[0, 1]]), (7, [[1, 0]]), (1, [[0], [1]]), (4, [[1], [0]])


def found_by(mixer: Mixer, parts: int, batches: list[list[int]], tokens: int) -> Found:
    """Outputs, losses and gradients of one rank."""
    dtype = next(mixer.parameters()).dtype
    mixer.zero_grad()
    found = [of_rows(mixer, parts, rows, tokens, dtype) for rows in batches]
    y, dx = (torch.cat([rows[name] for rows in found])[[row for rows in batches for row in rows]] for name in ("y", "dx"))
    return found[-1] | {"y": y, "dx": dx, "losses": sum((rows["losses"] for rows in found[1:]), found[0]["losses"])}


def of_rows(mixer: Mixer, parts: int, rows: list[int], tokens: int, dtype: torch.dtype) -> Found:
    x = streams(tokens=tokens)[rows].to(dtype).requires_grad_()
    starts, state, outputs = documents().starts_BT[rows, :tokens], None, []
    for part in torch.arange(tokens).chunk(parts):
        here = slice(int(part[0]), int(part[-1]) + 1)
        y, state = mixer(x[:, here], state, Docs(starts[:, here]))
        outputs.append(y)
    return gradients(mixer, x, torch.cat(outputs, 1), slice(0, tokens), rows, tokens)


def gradients(mixer: Mixer, x: torch.Tensor, y: torch.Tensor, here: slice, rows: list[int], tokens: int) -> Found:
    """With those of earlier rows. here: which of all `tokens` x and y are."""
    losses = torch.stack([(y * streams(seed, tokens)[rows, here].to(y.dtype)).sum() for seed in range(3, 19)])
    losses[0].backward()
    assert x.grad is not None
    found = {f"d {name}": p.grad.clone() for name, p in mixer.named_parameters() if p.grad is not None}
    return found | {"y": y.detach(), "dx": x.grad, "losses": losses.detach()}


@patch.dict(MIXERS, FAMILIES)
def split(rank: int, size: int, only: list[int]) -> dict[str, Found]:
    """By case and mode, in float32: the rank's outputs and inputs' gradients, the losses and parameters' gradients of all."""
    found, tokens = {}, tokens_over(size)
    mine = slice(rank * tokens // size, (rank + 1) * tokens // size)
    for case in (CASES[k] for k in only):
        for mode in modes_of(case, size, tokens):
            mixer = case.mixer().float()
            x = streams(tokens=tokens)[:, mine].float().requires_grad_()
            y, _ = mixer(x, None, documents()[:tokens], Ranks(rank, size, mode=mode, states=False))
            ours = gradients(mixer, x, y, mine, [0, 1], tokens)
            for name in sorted(ours.keys() - {"y", "dx"}):
                dist.all_reduce(ours[name])
            found[f"{label(case)} {mode}"] = ours
    return found


def errors(ours: Found, exact: Found) -> dict[str, float]:
    return {name: ((ours[name].double() - value).norm() / value.norm().clamp(min=1e-6)).item() for name, value in exact.items()}


def errors_of_one(case: Case, tokens: int) -> tuple[Found, dict[str, float]]:
    """(in float64; the largest error of each number that one rank makes in float32)."""
    mixer = case.mixer().float()
    orders = [found_by(mixer, parts, batches, tokens) for parts, batches in ORDERS]
    exact = found_by(mixer.double(), 1, [[0, 1]], tokens)
    each = [errors(order, exact) for order in orders]
    return exact, {name: max(found[name] for found in each) for name in exact}


def test_errors_are_those_of_sums_in_another_order(four_ranks: list) -> None:
    near_enough([found["float32"] for found in four_ranks], KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_errors_of_all_cases_are_so(size: int) -> None:
    only = list(range(len(CASES)))
    near_enough(run_ranks(split, size, size, only, timeout=480), only)


@patch.dict(MIXERS, FAMILIES)
def near_enough(by_rank: list[dict[str, Found]], only: list[int]) -> None:
    size, tokens = len(by_rank), tokens_over(len(by_rank))
    worst = {}
    for case in (CASES[k] for k in only):
        exact, of_one = errors_of_one(case, tokens)
        for mode in modes_of(case, size, tokens):
            shares = [found[f"{label(case)} {mode}"] for found in by_rank]
            ours = shares[0] | {name: torch.cat([share[name] for share in shares], 1) for name in ("y", "dx")}
            for name, error in errors(ours, exact).items():
                worst[f"{label(case)} {mode}: {name}"] = (error / max(of_one[name], EPSILON), error, of_one[name])
    name = max(worst, key=worst.__getitem__)
    ratio, error, allowed = worst[name]
    assert ratio <= 2, f"{name} is off by {error:.1e}, {ratio:.1f} times what one rank is ({allowed:.1e})"


# of one rounding: no error is asked to be smaller
EPSILON = torch.finfo(torch.float32).eps / 2
