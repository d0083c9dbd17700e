"""The training stream: windows of the shards' grids, and an order that nothing but (manifest, seed, index) touches."""

import gc
import random
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.config import build
from llm.data import NOT_SCORED, Batch, Batches, DataConfig, Manifest, TokenStream
from llm.data.manifest import Source
from llm.data.write import DatasetWriter
from llm.errors import ConfigError, DataError

T = 16


def stream_of(manifest: Manifest, seed: int = 0, prefetch: int = 0, sequence_length: int = T) -> TokenStream:
    return TokenStream(manifest, "train", DataConfig(str(manifest.root), sequence_length, "concat", prefetch), seed)


def rows_of(steps: list[list[Batch]]) -> np.ndarray:
    """[n, T + 1]: the sequences behind a rank's micro-batches."""
    batches = [batch for step in steps for batch in step]
    return torch.cat([torch.cat([batch.tokens_BT, batch.labels_BT[:, -1:]], 1) for batch in batches]).numpy()


def all_ranks(stream: TokenStream, steps: int, batch: int, ranks: int, micro_batch: int, consumed: int) -> np.ndarray:
    """[steps x batch, T + 1]: the global order, put together from what each rank saw."""
    seen = []
    for rank in range(ranks):
        batches = Batches(stream, batch, rank, ranks, micro_batch, consumed)
        seen.append(rows_of([next(batches) for _ in range(steps)]).reshape(steps, batch // ranks, -1))
        batches.close()
        assert batches.state()["consumed"] == consumed + steps * batch
    return np.concatenate(seen, axis=1).reshape(steps * batch, -1)


# webdataset leaves its files to the garbage collector
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_an_epoch_of_each_source_is_its_grid(dataset: Manifest):
    """Against the shards as webdataset reads them, cut by a plain loop."""
    grid: dict[str, Counter] = {name: Counter() for name in dataset.sources}
    for shard in dataset.split("train"):
        (sample,) = webdataset.WebDataset(str(dataset.root / shard.path), shardshuffle=False)
        tokens = np.frombuffer(sample["tokens.bin"], "<u2").astype(np.int64)
        begins = {0, *np.frombuffer(sample["doc_ends.idx"], "<u8").astype(int).tolist()}
        for low in range(0, len(tokens) - T, T):
            starts = [t == 0 or low + t in begins for t in range(T)]
            grid[shard.source][tokens[low : low + T + 1].tobytes(), bytes(starts)] += 1
    stream = stream_of(dataset)
    assert len(stream) == sum(windows.total() for windows in grid.values())
    draws = stream.order(np.arange(4 * len(stream)))
    for s, (name, windows) in enumerate(sorted(grid.items())):
        first_epoch = np.flatnonzero((draws.source == s) & (draws.epoch == 0))
        rows = zip(*stream.rows(first_epoch), strict=True)
        assert Counter((tokens.tobytes(), starts.tobytes()) for tokens, starts in rows) == windows, name


def test_starts_stand_where_the_document_token_does(dataset: Manifest):
    stream = stream_of(dataset)
    tokens, starts = stream.rows(np.arange(len(stream)))
    opens = tokens[:, :-1] == dataset.tokenizer.document_token
    assert starts[:, 0].all()
    assert np.array_equal(starts[:, 1:], opens[:, 1:])


def test_a_manifest_read_back_gives_the_same_order(dataset: Manifest):
    loaded = Manifest.load(dataset.root)
    assert loaded == dataset
    for ours, theirs in zip(stream_of(dataset).rows(np.arange(300)), stream_of(loaded).rows(np.arange(300)), strict=True):
        assert np.array_equal(ours, theirs)


def test_one_sequence_is_its_row(dataset: Manifest):
    stream = stream_of(dataset)
    tokens, starts = stream.rows(np.array([3, 10**9, 5]))
    for n, i in enumerate([3, 10**9, 5]):
        one_tokens, one_starts = stream.sequence(i)
        assert np.array_equal(one_tokens, tokens[n])
        assert np.array_equal(one_starts, starts[n])
    assert (tokens.dtype, starts.dtype) == (np.int64, np.bool_)


@settings(max_examples=40, deadline=None)
@given(
    ranks=st.sampled_from([1, 2, 4]),
    micro_batch=st.sampled_from([1, 2]),
    prefetch=st.sampled_from([0, 1, 3]),
    seed=st.integers(0, 3),
    legs=st.lists(st.tuples(st.integers(0, 3), st.sampled_from([8, 16])), min_size=1, max_size=4),
)
def test_nothing_changes_the_global_order(dataset: Manifest, ranks, micro_batch, prefetch, seed, legs):
    """Ranks, micro-batch, prefetch, stopping after any step, and another batch size after a restart."""
    consumed, seen = 0, []
    for steps, batch in legs:
        if steps:
            seen.append(all_ranks(stream_of(dataset, seed, prefetch), steps, batch, ranks, micro_batch, consumed))
            consumed += steps * batch
    if seen:
        plain, _ = stream_of(dataset, seed).rows(np.arange(consumed))
        assert np.array_equal(np.concatenate(seen), plain)


def test_a_batch_is_tokens_labels_and_documents(dataset: Manifest):
    stream = stream_of(dataset)
    (batch,) = next(Batches(stream, 6, 0, 1, 6))
    tokens, starts = stream.rows(np.arange(6))
    assert np.array_equal(batch.tokens_BT.numpy(), tokens[:, :-1])
    assert np.array_equal(batch.labels_BT.numpy(), tokens[:, 1:])
    assert np.array_equal(batch.docs.starts_BT.numpy(), starts)
    assert batch.tokens_BT.dtype == batch.labels_BT.dtype == torch.int64
    assert batch.scored == 6 * T
    parts = batch.to("cpu").split(4)
    assert [len(part.tokens_BT) for part in parts] == [4, 2]
    assert torch.equal(torch.cat([part.docs.starts_BT for part in parts]), batch.docs.starts_BT)


def test_padding_is_not_scored():
    batch = Batch.from_rows(np.array([[5, 6, -1, -1]]), np.array([[True, False, False]]))
    assert batch.labels_BT.tolist() == [[6, NOT_SCORED, NOT_SCORED]]
    assert batch.tokens_BT.tolist() == [[5, 6, 0]]


def test_resuming_with_other_data_is_refused(dataset: Manifest):
    batches = Batches(stream_of(dataset), 4, 0, 1, 2)
    next(batches)
    saved = batches.state()
    assert saved["consumed"] == 4
    batches.check_state(saved)
    for name, other in {"manifest": "0" * 64, "seed": 1, "sequence_length": 32, "packing": "bestfit"}.items():
        with pytest.raises(DataError, match=rf"data {name} .* must be the checkpoint's"):
            batches.check_state({**saved, name: other})
        with pytest.raises(DataError, match=rf"data {name} "):
            batches.check_state({key: value for key, value in saved.items() if key != name})


@pytest.mark.parametrize(("batch", "ranks", "micro_batch"), [(6, 4, 1), (8, 2, 3), (0, 1, 1), (4, 1, 0), (2, 4, 1)])
def test_a_batch_that_ranks_cannot_share_is_refused(dataset: Manifest, batch: int, ranks: int, micro_batch: int):
    with pytest.raises(ConfigError, match=r"batch \(\d sequences\) must be a positive multiple of ranks"):
        Batches(stream_of(dataset), batch, 0, ranks, micro_batch)


def test_a_sequence_longer_than_the_split_is_refused(dataset: Manifest):
    longest = min(max(shard.tokens for shard in dataset.split("train") if shard.source == source) for source in dataset.sources)
    assert len(stream_of(dataset, sequence_length=longest - 1))
    with pytest.raises(DataError, match=rf"data\.sequence_length \({longest}\) must be less than .* use at most {longest - 1},"):
        stream_of(dataset, sequence_length=longest)
    with pytest.raises(ConfigError, match=r"data\.sequence_length \(0\) must be at least 1"):
        stream_of(dataset, sequence_length=0)


def test_an_empty_split_is_refused(dataset: Manifest):
    with pytest.raises(DataError, match=r"split 'test' of .* is empty \(there is: train, validation\)"):
        TokenStream(dataset, "test", DataConfig("", T), seed=0)


def test_a_source_without_weight_is_not_trained_on(tokenizer_json: bytes, tmp_path: Path):
    def stream(weight: float) -> TokenStream:
        writer = DatasetWriter(tmp_path / str(weight), tokenizer_json, {"a": Source(weight, "x"), "b": Source(0.0, "x")})
        for source, token in (("a", 5), ("b", 6)):
            writer.add(source, "train", [token] * 100, 100)
        return TokenStream(writer.finish(), "train", DataConfig("", T), seed=0)

    assert set(np.unique(stream(0.5).rows(np.arange(50))[0])) == {0, 5}
    with pytest.raises(DataError, match="has no source of positive weight"):
        stream(0.0)


def test_packing_takes_known_words_only():
    assert build(DataConfig, {"manifest": "m"}, {}).packing == "concat"
    with pytest.raises(ConfigError, match="packing"):
        build(DataConfig, {"manifest": "m", "packing": "best"}, {})


def reading_threads() -> int:
    return sum(thread.name == "data prefetch" for thread in threading.enumerate())


def test_closing_or_dropping_ends_the_thread(dataset: Manifest):
    before = reading_threads()
    batches = Batches(stream_of(dataset, prefetch=2), 4, 0, 1, 2)
    next(batches)
    assert reading_threads() == before + 1
    batches.close()
    assert reading_threads() == before
    batches = Batches(stream_of(dataset, prefetch=2), 4, 0, 1, 2)
    next(batches)
    del batches
    gc.collect()
    assert reading_threads() == before


@pytest.mark.parametrize("prefetch", [0, 2])
def test_damage_met_while_reading_ahead_stops_the_loop(copy_of_dataset: Manifest, prefetch: int):
    stream, rng = stream_of(copy_of_dataset, prefetch=prefetch), random.Random(0)
    for shard in copy_of_dataset.shards:
        path = copy_of_dataset.root / shard.path
        content = bytearray(path.read_bytes())
        content[shard.members["tokens.bin"].offset + rng.randrange(shard.tokens)] ^= 1
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"shard-\d+\.tar: block 0 of the tokens is corrupt"):
        next(Batches(stream, 4, 0, 1, 4))
