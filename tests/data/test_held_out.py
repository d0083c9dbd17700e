"""Validation: every held-out token is scored once, and no rank runs dry."""

import numpy as np
import pytest
import torch

from llm.data import Batch, HeldOutBatches, Manifest, documents
from llm.errors import ConfigError, DataError

T = 16


def scored_labels(batches: list[Batch]) -> list[int]:
    return [int(label) for batch in batches for label in batch.labels_BT[batch.labels_BT >= 0]]


def of_ranks(
    manifest: Manifest, batch: int, ranks: int, micro_batch: int | None = None, limit: int | None = None
) -> list[list[list[Batch]]]:
    return [list(HeldOutBatches(manifest, "validation", T, batch, rank, ranks, micro_batch, limit)) for rank in range(ranks)]


@pytest.mark.parametrize(("batch", "ranks", "micro_batch"), [(1, 1, None), (4, 1, 2), (8, 4, 1), (7, 2, 2), (64, 2, 16)])
def test_every_token_is_scored_once(dataset: Manifest, batch: int, ranks: int, micro_batch: int | None):
    by_rank = of_ranks(dataset, batch, ranks, micro_batch)
    assert len({len(steps) for steps in by_rank}) == 1
    assert len({tuple(len(step) for step in steps) for steps in by_rank}) == 1
    labels = [label for step in zip(*by_rank, strict=True) for rank in step for label in scored_labels(rank)]
    blobs = []
    for shard in dataset.split("validation"):
        at = shard.members["tokens.bin"]
        blobs += np.frombuffer((dataset.root / shard.path).read_bytes()[at.offset : at.offset + at.bytes], "<u2").tolist()
    # the token that opens the split is nobody's label; the end of its last document is one
    assert labels == [*blobs[1:], dataset.tokenizer.document_token]


def test_padding_rows_are_whole_and_start_documents(dataset: Manifest):
    steps = list(HeldOutBatches(dataset, "validation", T, 64))
    last = steps[-1][0]
    assert last.tokens_BT.shape == last.labels_BT.shape == last.docs.shape == (64, T)
    assert last.docs.starts_BT[:, 0].all()
    assert last.tokens_BT.min() >= 0
    assert (last.labels_BT[-1] == -100).all()


def test_a_limit_takes_windows_from_all_over_the_split(dataset: Manifest):
    held_out = HeldOutBatches(dataset, "validation", T, 2, limit=5)
    everything = torch.cat([b.tokens_BT for step in HeldOutBatches(dataset, "validation", T, 2) for b in step])
    taken = torch.cat([b.tokens_BT for step in held_out for b in step])[:5]
    total = len(HeldOutBatches(dataset, "validation", T, 1))
    assert (held_out.sequences, len(held_out)) == (5, 3)
    assert torch.equal(taken, everything[[k * total // 5 for k in range(5)]])
    assert HeldOutBatches(dataset, "validation", T, 2, limit=10**9).sequences == total


def test_it_can_be_read_again(dataset: Manifest):
    held_out = HeldOutBatches(dataset, "validation", T, 4)
    first, second = ([scored_labels(step) for step in held_out] for _ in range(2))
    assert first == second


def test_documents_are_whole_and_in_order(dataset: Manifest):
    found = list(documents(dataset, "validation"))
    tokens = sum(shard.tokens for shard in dataset.split("validation"))
    assert sum(len(document.tokens) for document in found) == tokens
    assert {document.source for document in found} == set(dataset.sources)
    assert all(document.tokens.dtype == np.int64 for document in found)


def test_bad_requests_are_refused(dataset: Manifest):
    with pytest.raises(DataError, match="split 'nowhere'"):
        HeldOutBatches(dataset, "nowhere", T, 4)
    with pytest.raises(DataError, match="split 'nowhere'"):
        next(documents(dataset, "nowhere"))
    with pytest.raises(ConfigError, match=r"batch \(1 sequences\) must hold one for each of the ranks \(2\)"):
        HeldOutBatches(dataset, "validation", T, 1, 0, 2)
    with pytest.raises(ConfigError, match=r"limit \(0\) must be at least 1"):
        HeldOutBatches(dataset, "validation", T, 4, limit=0)
