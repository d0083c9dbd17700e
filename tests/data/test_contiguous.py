"""Lanes of whole documents: each goes on where it ended, all begin an epoch together."""

import itertools
import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data.contiguous import BLOCK, ContiguousLanes
from llm.data.packing import Pieces
from llm.errors import ConfigError

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=60)


def realistic(documents: int) -> np.ndarray:
    """Lengths like those of web text."""
    return np.clip(np.random.default_rng(0).lognormal(6.6, 1.2, documents), 1, None).astype(np.int64)


def tokens_of(pieces: Pieces) -> list[int]:
    """Places on the tape."""
    return [at for offset, length in zip(*pieces, strict=True) for at in range(offset, offset + length)]


def lane_rows(lanes: ContiguousLanes, lane: int, epoch: int) -> list:
    first = epoch * len(lanes) + lane
    return [lanes.row(first + step * lanes.lanes) for step in range(lanes.steps)]


@settings(deadline=None)
@given(
    lengths=LENGTHS,
    lanes=st.integers(1, 6),
    T=st.integers(1, 30),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 5),
    block=st.integers(1, 9),
)
def test_a_lane_is_whole_documents_one_after_the_other(lengths: list[int], lanes: int, T: int, seed: int, epoch: int, block: int):
    with pytest.MonkeyPatch.context() as patch:
        # so that few documents make many blocks
        patch.setattr("llm.data.contiguous.BLOCK", block)
        check_lanes(ContiguousLanes(np.array(lengths), min(lanes, len(lengths)), T, seed), lengths, T, epoch)


def check_lanes(order: ContiguousLanes, lengths: list[int], T: int, epoch: int) -> None:
    starts = np.cumsum(lengths) - lengths
    seen: list[int] = []
    for lane in range(order.lanes):
        rows = lane_rows(order, lane, epoch)
        assert all(row.epoch == epoch for row in rows)
        tape = [at for row in rows for at in tokens_of(row.pieces)]
        # what is before the padding is full
        assert [int(row.pieces.length.sum()) for row in rows] == [
            min(T, max(0, len(tape) - step * T)) for step in range(order.steps)
        ]
        documents = np.searchsorted(starts, [at for at in tape if at in set(starts)], side="right") - 1
        assert tape == [starts[d] + t for d in documents for t in range(lengths[d])]
        for row in rows:
            assert (row.pieces.length > 0).all()
            begins = [int(offset) in set(starts) for offset in row.pieces.offset]
            # only a row's first piece can be the rest of a document
            assert begins == [not row.continues] * min(1, len(begins)) + [True] * (len(begins) - 1)
        seen += documents.tolist()
    assert sorted(seen) == list(range(len(lengths)))
    total = sum(lengths)
    assert order.padding == len(order) * T - total
    assert order.padding < order.lanes * (max(lengths) + T + 1)
    assert all(tokens < total / order.lanes + max(lengths) + 1 for tokens in order.tokens)


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=8), lanes=st.integers(1, 4))
def test_no_other_runs_have_a_shorter_longest_lane(lengths: list[int], lanes: int):
    lanes = min(lanes, len(lengths))
    cuts = itertools.combinations_with_replacement(range(len(lengths) + 1), lanes - 1)
    runs = [[0, *cut, len(lengths)] for cut in cuts]
    best = min(max(sum(lengths[a:b]) for a, b in itertools.pairwise(run)) for run in runs)
    assert ContiguousLanes(np.array(lengths), lanes, 8, 0).tokens.max() == best


def test_epochs_and_seeds_change_the_order_and_lanes_keep_their_documents():
    lengths = np.random.default_rng(0).integers(1, 20, 5 * BLOCK)
    order, other = ContiguousLanes(lengths, 2, 512, 0), ContiguousLanes(lengths, 2, 512, 1)
    for lane in range(2):
        first, second, third = (lane_rows(o, lane, epoch) for o, epoch in ((order, 0), (order, 1), (other, 0)))
        flat = [np.concatenate([row.pieces.offset for row in rows if not row.continues]) for rows in (first, second, third)]
        assert not any(np.array_equal(flat[a], flat[b]) for a, b in ((0, 1), (0, 2), (1, 2)))
        held = [set(tokens_of(Pieces(*np.concatenate([row.pieces for row in rows], axis=1)))) for rows in (first, second)]
        assert held[0] == held[1]


def test_a_row_alone_is_what_it_is_in_a_row():
    lengths = realistic(2 * BLOCK)
    whole = ContiguousLanes(lengths, 3, 1024, 5)
    rows = [whole.row(i) for i in range(2 * len(whole))]
    for i in random.Random(0).sample(range(len(rows)), 40):
        alone = ContiguousLanes(lengths, 3, 1024, 5).row(i)
        assert (alone.epoch, alone.continues) == (rows[i].epoch, rows[i].continues)
        assert all(np.array_equal(a, b) for a, b in zip(alone.pieces, rows[i].pieces, strict=True))


def test_lanes_pad_little_and_are_sought_quickly():
    lengths = realistic(500_000)
    order = ContiguousLanes(lengths, 64, 2048, 0)
    share = order.padding / (len(order) * 2048)
    tries = []
    for i in (len(order) // 3, 7 * len(order) + 5, 10**9):
        start = time.perf_counter()
        order.row(i)
        tries.append(time.perf_counter() - start)
    print(
        f"64 lanes over {lengths.sum() / 1e6:.0f} M tokens: {100 * share:.2f} % padding, a first row in {1e3 * min(tries):.2f} ms"
    )
    assert share < 0.02
    assert min(tries) < 0.01


@pytest.mark.parametrize("lanes", [0, 4])
def test_lanes_that_documents_cannot_fill_are_refused(lanes: int):
    with pytest.raises(ConfigError, match=rf"lanes \({lanes}\) must be at least 1 and at most the documents \(3\)"):
        ContiguousLanes(np.array([5, 5, 5]), lanes, 8, 0)


def test_a_document_longer_than_a_lanes_share_costs_padding():
    order = ContiguousLanes(np.array([100, 1, 1, 1]), 2, 10, 0)
    assert (order.tokens.tolist(), order.steps, order.padding) == ([100, 3], 10, 97)
