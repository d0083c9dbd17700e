"""Fragments -> files -> fragments of any other layout: every element comes back where it belongs. And what files may not do."""

import math
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from llm.errors import CheckpointError
from llm.train.fragments import Fragment, dealt
from llm.train.shards import Pieces, Wanted, fill, same_shapes, state_shard, states_of, weight_shard, weights_of

SHAPES = st.dictionaries(st.sampled_from("abcdefg"), st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple), min_size=1)
RANKS = st.integers(1, 5)


def whole(shapes: dict[str, tuple[int, ...]]) -> list[Fragment]:
    """Every element's value says where it is; `a` and `b` have one state more than the others, as under two optimizers."""
    found, first = [], 0.0
    for name, shape in shapes.items():
        weight = torch.arange(math.prod(shape), dtype=torch.float32) + first
        first += len(weight)
        state = {"exp_avg": -weight, **({"exp_avg_sq": weight + 0.5} if name in "ab" else {})}
        found.append(Fragment(name, shape, 0, weight, state, {"step": [len(shape) + 0.0], "count": 3}))
    return found


def cut(fragment: Fragment, low: int, high: int) -> list[Fragment]:
    parts = {key: value[low:high] for key, value in fragment.state.items()}
    piece = Fragment(fragment.name, fragment.shape, low, fragment.weight[low:high], parts, fragment.scalars)
    return [piece] if low < high else []


def equal_parts(found: list[Fragment], ranks: int) -> list[list[Fragment]]:
    """ZeRO 3: each parameter in as many equal parts as there are ranks, the last ones short or empty."""
    sizes = [-(-len(fragment.weight) // ranks) for fragment in found]
    return [
        [
            piece
            for fragment, size in zip(found, sizes, strict=True)
            for piece in cut(fragment, *(min(k * size, len(fragment.weight)) for k in (rank, rank + 1)))
        ]
        for rank in range(ranks)
    ]


def partitions(found: list[Fragment], ranks: int) -> list[list[Fragment]]:
    """ZeRO 1 and 2: the parameters in a row, cut into equal parts, the last one padded."""
    size = -(-sum(len(fragment.weight) for fragment in found) // ranks)
    layout: list[list[Fragment]] = [[] for _ in range(ranks)]
    position = 0
    for fragment in found:
        n = len(fragment.weight)
        for rank in range(ranks):
            layout[rank] += cut(fragment, *(min(max(k * size - position, 0), n) for k in (rank, rank + 1)))
        position += n
    return layout


def shared(found: list[Fragment], ranks: int) -> list[list[Fragment]]:
    """ZeRO 0, as it is saved."""
    return [dealt(found, rank, ranks) for rank in range(ranks)]


LAYOUTS = st.sampled_from([equal_parts, partitions, shared])


def save(folder: Path, layout: list[list[Fragment]]) -> tuple[Pieces, Pieces]:
    """As ranks write and read: each reads the headers of some files."""
    read = []
    for kind, shard in (("w", weight_shard), ("o", state_shard)):
        names = [f"{kind}-{rank}" for rank in range(len(layout))]
        for name, held in zip(names, layout, strict=True):
            save_file(*[shard(held).tensors, folder / name, shard(held).metadata])
        read.append(Pieces.merged([Pieces.read(folder, names[k::2]) for k in (0, 1)]))
    return read[0], read[1]


@settings(max_examples=80, deadline=None)
@given(shapes=SHAPES, before=LAYOUTS, after=LAYOUTS, ranks=RANKS, others=RANKS)
def test_any_layout_reads_any_other(shapes, before, after, ranks: int, others: int) -> None:
    found = whole(shapes)
    with TemporaryDirectory() as folder:
        weights, states = save(Path(folder), before(found, ranks))
        assert same_shapes(weights, shapes) is None
        assert states.state_keys() == {part.name: set(part.state) for part in found}
        assert states.scalars == {part.name: part.scalars for part in found}
        layout = after(found, others)
        assert sum(len(part.weight) for held in layout for part in held) == sum(map(math.prod, shapes.values()))
        for held in layout:
            nan = torch.nan
            blank = [Fragment(p.name, p.shape, p.start, p.weight * nan, {k: v * nan for k, v in p.state.items()}, {}) for p in held]
            fill(weights, weights_of(blank))
            fill(states, states_of(blank))
            for part, other in zip(blank, held, strict=True):
                assert torch.equal(part.weight, other.weight)
                assert all(torch.equal(part.state[key], other.state[key]) for key in other.state)


@settings(max_examples=50, deadline=None)
@given(shapes=SHAPES, ranks=RANKS)
def test_what_all_hold_is_dealt_evenly(shapes, ranks: int) -> None:
    sizes = [sum(len(part.weight) for part in dealt(whole(shapes), rank, ranks)) for rank in range(ranks)]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("harm", ["gap", "overlap", "short"])
def test_elements_in_no_file_or_two_are_refused(harm: str, tmp_path: Path) -> None:
    (fragment,) = whole({"a": (4, 5)})
    first, second = {"gap": (8, 9), "overlap": (8, 7), "short": (8, 8)}[harm]
    last = 19 if harm == "short" else 20
    with pytest.raises(CheckpointError, match=r"do not hold a \[4, 5\] once and whole"):
        save(tmp_path, [cut(fragment, 0, first), cut(fragment, second, last)])


def test_reading_into_another_precision_rounds_once(tmp_path: Path) -> None:
    values = torch.randn(33)
    part = Fragment("a", (33,), 0, values, {}, {})
    weights, _ = save(tmp_path, shared([part], 2))
    target = torch.empty(33, dtype=torch.bfloat16)
    fill(weights, [Wanted("a", 0, target)])
    assert torch.equal(target, values.bfloat16())
