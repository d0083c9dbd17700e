"""Muon alone, in one process: torch's own, bit for bit; which rank holds and makes what; noise that does not know of ranks."""

import math
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm.init import parameter_roles
from llm.train.layout import pieces
from llm.train.muon import orthogonalise, plan
from llm.train.optimizer import AdamWConfig, MuonConfig, parameter_groups, set_rates
from llm.train.split_adamw import SplitAdamW, add_noise

sys.path.append(str(Path(__file__).resolve().parents[1] / "contract"))
from cases import all_cases, label

shapes = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6)


def held_by(numels: list[int], zero: int, ranks: int) -> int:
    """Length of each rank's flat tensor, as DeepSpeed has it: padded to two values per rank, or each parameter to one."""
    return sum(-(-numel // ranks) for numel in numels) if zero == 3 else 2 * math.ceil(sum(numels) / (2 * ranks))


@given(shapes=shapes, zero=st.sampled_from([1, 3]), ranks=st.integers(1, 7))
def test_every_value_is_held_once_and_every_matrix_made_by_a_holder(shapes: list[tuple[int, int]], zero: int, ranks: int) -> None:
    numels = [math.prod(shape) for shape in shapes]
    held = held_by(numels, zero, ranks)
    plans = [plan(tuple(shapes), zero, rank, ranks, held) for rank in range(ranks)]
    seen = [torch.zeros(numel, dtype=torch.int64) for numel in numels]
    for each in plans:
        taken = torch.zeros(held, dtype=torch.int64)
        for piece in each.mine:
            seen[piece.parameter][piece.start : piece.stop] += 1
            taken[piece.held] += 1
        assert (taken <= 1).all()
    assert all((count == 1).all() for count in seen)
    for sender, each in enumerate(plans):
        for receiver, other in enumerate(plans):
            # both sides of a message agree on what is in it, in which order
            assert each.outgoing[receiver] == other.incoming[sender]
    made = [{piece.parameter for group in each.incoming for piece in group} for each in plans]
    assert sorted(k for ours in made for k in ours) == list(range(len(shapes)))
    for each, ours in zip(plans, made, strict=True):
        assert ours <= {piece.parameter for piece in each.mine}


def test_matrices_that_a_rank_holds_whole_do_not_travel() -> None:
    """Under ZeRO 1 and 2 at most one matrix per border between ranks does; a quarter of a 7B model's on 16 ranks."""
    layer = [(4096, 4096)] * 4 + [(11008, 4096)] * 2 + [(4096, 11008)]
    shapes = tuple(layer * 8)
    numels = [math.prod(shape) for shape in shapes]
    for zero, most in ((1, 1.3), (3, 4.0)):
        held = held_by(numels, zero, 16)
        plans = [plan(shapes, zero, rank, 16, held) for rank in range(16)]
        # there and back, in bf16
        sent = [
            4 * sum(piece.stop - piece.start for owner, group in enumerate(each.outgoing) if owner != rank for piece in group)
            for rank, each in enumerate(plans)
        ]
        assert sum(sent) / sum(numels) <= most
        loads = [
            sum(math.prod(shapes[k]) * min(shapes[k]) for k in {p.parameter for g in each.incoming for p in g}) for each in plans
        ]
        assert max(loads) <= 2 * sum(loads) / 16


def test_zero_layouts_are_checked() -> None:
    with pytest.raises(AssertionError, match="another way"):
        pieces([10, 3], 3, 0, 2, 8)
    with pytest.raises(AssertionError, match="another way"):
        pieces([10, 3], 1, 0, 2, 6)


@pytest.mark.parametrize("shape", [(24, 16), (16, 40), (8, 8)])
def test_steps_are_torchs_bit_for_bit(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(shape)) for _ in range(2))
    group = {"params": [ours], "names": ["w"], "shapes": [shape], "orthogonal": True, "lr_scale": 1.0}
    muon = SplitAdamW([group], momentum=0.9, lr=0.02, weight_decay=0.1)
    torchs = torch.optim.Muon([theirs], 0.02, 0.1, momentum=0.9, adjust_lr_fn="match_rms_adamw")
    for step in range(1, 5):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        set_rates(muon, 0.02, step)
        muon.step()
        torchs.step()
        assert torch.equal(ours, theirs)


def test_singular_values_come_near_one() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(30, 50, dtype=torch.float64)
    values = torch.linalg.svdvals(orthogonalise(matrix))
    assert values.min() > 0.5
    assert values.max() < 1.3


@pytest.mark.parametrize("case", all_cases(), ids=label)
def test_muon_takes_matrices_of_every_mixer_and_nothing_else(case) -> None:
    module = case.mixer()
    groups = parameter_groups(MuonConfig(), module)
    named = [(group["orthogonal"], name) for group in groups for name in group["names"]]
    assert sorted(name for _, name in named) == sorted(name for name, _ in module.named_parameters())
    parameters = dict(module.named_parameters())
    linear = {f"{path}.weight" for path, part in module.named_modules() if isinstance(part, torch.nn.Linear)}
    taken = {name for orthogonal, name in named if orthogonal}
    assert linear <= taken
    assert all(parameters[name].ndim == 2 for name in taken)


def test_noise_depends_on_seed_step_parameter_and_position_alone() -> None:
    shapes, names = ((700, 800), (33,)), ["a", "b"]
    numels = [math.prod(shape) for shape in shapes]

    def drawn(zero: int, ranks: int, key: str = "0 1") -> list[torch.Tensor]:
        whole = [torch.zeros(numel) for numel in numels]
        held = held_by(numels, zero, ranks)
        for rank in range(ranks):
            gradient, each = torch.zeros(held), plan(shapes, zero, rank, ranks, held)
            add_noise(gradient, each, names, 0.5, key)
            for piece in each.mine:
                whole[piece.parameter][piece.start : piece.stop] = gradient[piece.held]
        return whole

    one = drawn(1, 1)
    for zero, ranks in ((1, 3), (3, 2), (3, 5)):
        assert all(torch.equal(x, y) for x, y in zip(one, drawn(zero, ranks), strict=True))
    other = drawn(1, 1, "0 2")
    assert not torch.equal(one[0], other[0])
    values = torch.cat([one[0], other[0]])
    assert values.std().item() == pytest.approx(0.5, rel=5e-3)
    assert values.mean().item() == pytest.approx(0.0, abs=2e-3)
    assert torch.corrcoef(torch.stack([one[0], other[0]]))[0, 1].abs() < 5e-3
    # no block repeats another
    assert one[0][: 1 << 18].ne(one[0][1 << 18 : 1 << 19]).all()


def test_a_parameter_without_a_role_is_refused_by_name() -> None:
    module = torch.nn.Module()
    module.inner = torch.nn.Module()
    module.inner.mystery = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(KeyError, match=r"inner.mystery has no role .* in Module.roles"):
        parameter_roles(module)
    with pytest.raises(KeyError, match="mystery"):
        parameter_groups(AdamWConfig(), module)
