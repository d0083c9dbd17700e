"""Rows in quarantine: the others keep their order, over restarts, ranks and packings; documents are named by where they lie."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.data import Batches, DataConfig, Manifest, Quarantine, TokenStream, documents

WINDOWS = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 12)).map(lambda w: (w[0], w[0] + w[1])), max_size=5)


@given(WINDOWS)
def test_it_is_the_list_of_the_other_rows(windows: list[tuple[int, int]]) -> None:
    quarantine = Quarantine(windows)
    held = {row for low, high in windows for row in range(low, high)}
    others = [row for row in range(120) if row not in held]
    assert len(quarantine) == len(held)
    assert quarantine.rows(np.arange(50)).tolist() == others[:50]
    assert quarantine.holds(np.arange(-5, 120)).tolist() == [row in held for row in range(-5, 120)]
    for row in range(120):
        assert quarantine.read_before(row) == sum(other < row for other in others)


BATCH = 8


def stream_of(manifest: Manifest, packing: str) -> TokenStream:
    return TokenStream(manifest, "train", DataConfig(sequence_length=16, packing=packing, workers=0), 0, BATCH)


def tokens(batches: Batches, steps: int) -> list[list]:
    """Of each step: its rows with where documents start, in any order."""
    found = []
    for _ in range(steps):
        micro_batches = next(batches)
        parts = [(batch.tokens_BT.tolist(), batch.docs.starts_BT.tolist()) for batch in micro_batches]
        found.append([row for tokens, starts in parts for row in zip(tokens, starts, strict=True)])
    return found


@pytest.mark.parametrize("packing", ["concat", "bestfit", "contiguous"])
def test_ranks_and_restarts_read_the_rows_behind(packing: str, dataset: Manifest) -> None:
    stream, quarantine = stream_of(dataset, packing), Quarantine([(16, 32), (40, 48)])
    order = [*range(16), *range(32, 40), *range(48, 80)]
    rows = stream.rows(np.array(order))
    # behind a window no state goes on
    rows.starts[16:32, 0] = True
    pairs = list(zip(rows.tokens.tolist(), rows.starts.tolist(), strict=True))
    expected = [sorted(pairs[k : k + BATCH]) for k in range(0, 56, BATCH)]
    for ranks in (1, 2, 4):
        each = [Batches(stream, BATCH, rank, ranks, BATCH // ranks, quarantine=quarantine) for rank in range(ranks)]
        read = [tokens(batches, 7) for batches in each]
        assert [sorted(row for rank in read for row in rank[step]) for step in range(7)] == expected
        assert {batches.consumed for batches in each} == {80}
    for done, consumed in ((2, 16), (3, 40), (4, 56)):
        behind = Batches(stream, BATCH, 0, 1, BATCH)
        behind.seek(consumed, quarantine)
        assert [sorted(step) for step in tokens(behind, 2)] == expected[done : done + 2]
    # where the step before ended, and where the window behind it ends, are one place
    assert [sorted(step) for step in tokens(Batches(stream, BATCH, 0, 1, BATCH, 32, quarantine=quarantine), 1)] == expected[2:3]


@pytest.mark.parametrize("packing", ["concat", "bestfit", "contiguous"])
def test_documents_of_rows_are_those_whose_tokens_are_in_them(packing: str, dataset: Manifest) -> None:
    stream = stream_of(dataset, packing)
    lengths = {shard.path: shard.documents for shard in dataset.split("train")}
    found = stream.documents(np.arange(4 * len(stream)))
    assert found == {path: set(range(count)) for path, count in lengths.items() if count}
    whole = iter(documents(dataset, "train"))
    texts = {(path, k): next(whole).tokens.tolist() for path, count in lengths.items() for k in range(count)}
    for row in range(0, 40, 3):
        read = stream.rows(np.array([row]))
        # a row may go on with a document
        starts = sorted({0, *np.flatnonzero(read.starts[0]).tolist()})
        scored = (read.labels[0] >= 0).sum()
        parts = [read.tokens[0, a:b].tolist() for a, b in pairwise([*starts, 16]) if a < scored]
        named = [texts[shard, k] for shard, numbers in stream.documents(np.array([row])).items() for k in sorted(numbers)]
        assert len(parts) == len(named)
        for part in parts:
            assert any(part == text[at : at + len(part)] for text in named for at in range(len(text)))
