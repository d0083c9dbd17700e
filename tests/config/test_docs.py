"""Every spelling of document boundaries says the same."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from llm.docs import Docs, Stretch

rows = st.lists(st.lists(st.booleans(), min_size=12, max_size=12), min_size=1, max_size=3)


@given(rows, st.integers(0, 50))
def test_ids_and_positions_follow_from_starts(starts, offset):
    docs = Docs(torch.tensor(starts))
    position = docs.position_BT(torch.full((len(starts),), offset))
    for b, row in enumerate(starts):
        now, document = offset - 1, 0
        for t, start in enumerate(row):
            now, document = (0, document + 1) if start else (now + 1, document)
            assert position[b, t] == now
            assert docs.id_BT[b, t] == document


@given(rows)
def test_cu_seqlens_cut_the_flattened_batch_at_rows_and_starts(starts):
    docs = Docs(torch.tensor(starts))
    ends = [i for i, start in enumerate(s for row in starts for s in row) if start or i % 12 == 0]
    assert docs.cu_seqlens.tolist() == [*ends, 12 * len(starts)]
    assert docs.cu_seqlens.dtype == torch.int32
    assert docs.max_len == max(b - a for a, b in zip(ends, [*ends[1:], 12 * len(starts)], strict=True))


def test_lengths_and_slices():
    docs = Docs.from_lengths([[3, 2], [5]])
    assert docs.starts_BT.tolist() == [[True, False, False, True, False], [True, False, False, False, False]]
    assert docs[2:4].starts_BT.tolist() == [[False, True], [False, False]]


@given(rows, st.integers(1, 6), st.booleans())
def test_chunks_are_bounded_by_what_the_host_knows(starts, size, fresh):
    """Of all places in a chunk that rows may go on from, by counting; and as near as that."""
    docs = Docs(torch.tensor(starts))
    most = 0
    for offset in range(1 if fresh else size):
        position = docs.position_BT(torch.full((len(starts),), offset))
        for row in position.tolist():
            most = max(most, 1 + sum(p % size == 0 for p in row[1:]))
    assert docs.most_chunks(size, fresh) == most
    assert Stretch(docs, torch.zeros(len(starts)), 0, 12, fresh).most_chunks(size) == most
    nowhere = Docs(torch.zeros(1, 12, dtype=torch.bool))
    assert Stretch(None, torch.zeros(1), 0, 12, fresh).most_chunks(size) == nowhere.most_chunks(size, fresh)
