"""The training stream: every packing holds every token once an epoch, and nothing but (manifest, seed, index) touches the order."""

import gc
import itertools
import random
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.config import build
from llm.data import NOT_SCORED, Batch, Batches, DataConfig, Manifest, TokenStream
from llm.data.manifest import Source
from llm.data.rows import ContiguousRows
from llm.data.write import DatasetWriter
from llm.errors import ConfigError, DataError
from tests.data.conftest import Numbered

T = 16
PACKINGS = ["concat", "bestfit", "contiguous"]


def stream_of(manifest: Manifest, seed: int = 0, batch: int = 8, **settings: Any) -> TokenStream:
    config = DataConfig(str(manifest.root), **{"sequence_length": T, "workers": 0, **settings})
    return TokenStream(manifest, "train", config, seed, batch)


def first_epoch(stream: TokenStream, source: int) -> np.ndarray:
    """The indices of a source's first epoch."""
    enough = np.arange(12 * len(stream) + 200)
    places = list(stream.order.places(enough))
    mine = [k for k, place in enumerate(places) if place.source == source and place.epoch == 0]
    assert any(place.source == source and place.epoch == 1 for place in places), "the epoch was not seen to its end"
    return enough[mine]


# what rows hold


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("sequence_length", [1, 5, 16, 64])
def test_an_epoch_is_every_token_once_with_the_one_that_follows(numbered: Numbered, packing: str, sequence_length: int):
    """Against the documents that were written: ids are unique, so an id says where it comes from."""
    manifest, opening = numbered.manifest, numbered.manifest.tokenizer.document_token
    stream = stream_of(manifest, packing=packing, sequence_length=sequence_length)
    for source, name in enumerate(["a", "b"]):
        documents = numbered.documents[name]
        follows = dict(pair for ids in documents for pair in itertools.pairwise([*ids, opening]))
        first_ids = Counter((ids or [opening])[0] for ids in documents)
        rows = stream.rows(first_epoch(stream, source))
        scored = rows.labels != NOT_SCORED
        text = scored & (rows.tokens != opening)
        assert sorted(rows.tokens[text].tolist()) == sorted(follows)
        assert rows.labels[text].tolist() == [follows[id] for id in rows.tokens[text].tolist()]
        # a document token is followed by the first id of its text
        assert Counter(rows.labels[scored & ~text].tolist()) == first_ids
        # documents begin where their token is, and nowhere else but where a row or a piece of a cut document does
        opens = rows.starts & scored
        assert not (scored & ~text & ~opens).any()
        begins = opens & text
        previous = np.pad(rows.labels, ((0, 0), (1, 0)), constant_values=NOT_SCORED)[:, :-1]
        assert not (begins & (previous == rows.tokens)).any()
        # what is not scored is padding, a document of its own
        assert (rows.tokens[~scored] == opening).all()


@pytest.mark.parametrize("packing", PACKINGS)
def test_neighbours_in_a_row_are_one_document_or_a_start_is_between(numbered: Numbered, packing: str):
    rows = stream_of(numbered.manifest, packing=packing).rows(np.arange(300))
    joined = ~rows.starts[:, 1:]
    scored = rows.labels[:, :-1] != NOT_SCORED
    assert (rows.labels[:, :-1] == rows.tokens[:, 1:])[joined & scored].all()
    assert (joined & scored).sum() > 1000


def test_bestfit_cuts_no_document_that_fits(numbered: Numbered):
    stream = stream_of(numbered.manifest, packing="bestfit")
    rows = stream.rows(first_epoch(stream, 0))
    length = {ids[0]: 1 + len(ids) for ids in numbered.documents["a"] if ids}
    opening = numbered.manifest.tokenizer.document_token
    cut = [int(token) for row, starts in zip(rows.tokens, rows.starts, strict=True) for token in row[starts] if token != opening]
    whole = {ids[k]: 1 + len(ids) for ids in numbered.documents["a"] for k in range(len(ids))}
    assert cut
    assert all(whole[token] > T for token in cut)
    assert any(length[first] <= T for first in length)


def test_a_plan_is_made_once_and_read_by_the_others(make_dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    manifest = make_dataset(tmp_path / "d")
    first = stream_of(manifest, packing="bestfit").rows(np.arange(50))
    assert [path.name for path in manifest.root.glob("*.plan")] == [f"train.bestfit-{T}.plan"]
    monkeypatch.setattr("llm.data.plan.make_plan", None)
    again = stream_of(manifest, packing="bestfit").rows(np.arange(50))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("batch", [2, 5, 8])
def test_contiguous_rows_go_on_where_they_ended(numbered: Numbered, batch: int):
    """Row by row of the batch: a row that starts no document begins with the token that was due."""
    stream = stream_of(numbered.manifest, packing="contiguous", batch=batch)
    assert isinstance(stream.order, ContiguousRows)
    carried = 0
    due = np.full(batch, NOT_SCORED)
    for step in range(60):
        rows = stream.rows(np.arange(step * batch, (step + 1) * batch))
        goes_on = ~rows.starts[:, 0]
        assert (rows.tokens[goes_on, 0] == due[goes_on]).all()
        carried += int(goes_on.sum())
        due = rows.labels[:, -1]
    assert carried > 20


def test_contiguous_deals_the_rows_out_by_weight_and_fixes_them(numbered: Numbered):
    stream = stream_of(numbered.manifest, packing="contiguous", batch=9)
    assert stream.identity()["mixture"] == "a: 2/3, b: 1/3"
    sources = [place.source for place in stream.order.places(np.arange(90))]
    assert sources == [0] * 6 + [1] * 3 + ([0] * 6 + [1] * 3) * 9
    with pytest.raises(DataError, match=r"data lanes \(8\) must be the checkpoint's \(9\)"):
        stream_of(numbered.manifest, packing="contiguous", batch=8).check_state(stream.identity())
    with pytest.raises(ConfigError, match=r"data\.lanes \(4\) must be the batch \(8\)"):
        stream_of(numbered.manifest, packing="contiguous", batch=8, lanes=4)
    with pytest.raises(ConfigError, match=r"the batch \(1\) must have a row for each of the 2 sources"):
        stream_of(numbered.manifest, packing="contiguous", batch=1)


def test_any_index_is_read_alone_as_in_a_block(dataset: Manifest):
    for packing in PACKINGS:
        stream, indices = stream_of(dataset, packing=packing), [3, 10**9, 5]
        block = stream.rows(np.array(indices))
        for n, i in enumerate(indices):
            for one, all_ in zip(stream.rows(np.array([i])), block, strict=True):
                assert np.array_equal(one[0], all_[n])
        assert [x.dtype for x in block] == [np.int64, np.int64, np.bool_]


def test_a_manifest_read_back_gives_the_same_order(dataset: Manifest):
    loaded = Manifest.load(dataset.root)
    assert loaded == dataset
    for ours, theirs in zip(stream_of(dataset).rows(np.arange(300)), stream_of(loaded).rows(np.arange(300)), strict=True):
        assert np.array_equal(ours, theirs)


# elastic and exact


def rows_of(batches: list[Batch]) -> list[bytes]:
    """Every row as bytes of its tokens, labels and starts, but for those of padding alone."""
    parts = [torch.cat([b.tokens_BT, b.labels_BT, b.docs.starts_BT.long()], 1)[b.loss_mask_BT.any(1)] for b in batches]
    return [row.tobytes() for part in parts for row in part.numpy()]


def joined(parts: list[Batch]) -> Batch:
    """What the ranks of one sequence hold together."""
    tokens, labels = (torch.cat([getattr(part, name) for part in parts], 1) for name in ("tokens_BT", "labels_BT"))
    return Batch(tokens, labels, parts[0].docs)


def leg(stream: TokenStream, steps: int, batch: int, ranks: int, micro_batch: int, sequence: int, consumed: int) -> list[Counter]:
    """The rows of each step, put together from what each rank saw."""
    seen: list[Counter] = [Counter() for _ in range(steps)]
    for rank in range(ranks):
        readers = [Batches(stream, batch, rank, ranks, micro_batch, consumed, (part, sequence)) for part in range(sequence)]
        for step in range(steps):
            micro_batches = [joined(list(parts)) for parts in zip(*(next(reader) for reader in readers), strict=True)]
            assert {len(micro.tokens_BT) for micro in micro_batches} == {micro_batch}
            seen[step].update(rows_of(micro_batches))
        for reader in readers:
            reader.close()
            assert reader.state()["consumed"] == consumed + steps * batch
    return seen


LEGS = st.tuples(
    st.integers(0, 3),
    st.sampled_from([8, 12, 16]),
    st.sampled_from([1, 2, 3, 4, 8]),
    st.sampled_from([1, 2, 3]),
    st.sampled_from([1, 2]),
    st.sampled_from([0, 1, 2, 3]),
    st.sampled_from([1, 3]),
)


@settings(max_examples=60, deadline=None)
@given(
    packing=st.sampled_from(["concat", "bestfit"]),
    lanes=st.sampled_from([None, 1, 4]),
    seed=st.integers(0, 3),
    legs=st.lists(LEGS, min_size=1, max_size=4),
)
def test_nothing_changes_the_global_order(dataset: Manifest, packing: str, lanes: int | None, seed: int, legs: list[tuple]):
    """Between restarts: ranks, micro-batch, ranks of a sequence, threads, reading ahead, and the batch."""
    consumed = 0
    plain = stream_of(dataset, seed, packing=packing, lanes=lanes)
    for steps, batch, ranks, micro_batch, sequence, workers, prefetch in legs:
        stream = stream_of(dataset, seed, packing=packing, lanes=lanes, workers=workers, prefetch=prefetch)
        for step, seen in enumerate(leg(stream, steps, batch, ranks, micro_batch, sequence, consumed)):
            due = plain.rows(np.arange(batch) + consumed + step * batch)
            assert seen == Counter(rows_of([Batch.from_rows(due)]))
        consumed += steps * batch


@settings(max_examples=20, deadline=None)
@given(legs=st.lists(LEGS, min_size=1, max_size=3), seed=st.integers(0, 3))
def test_nothing_changes_the_order_of_contiguous_rows(dataset: Manifest, legs: list[tuple], seed: int):
    consumed, batch = 0, 12
    for steps, _, ranks, micro_batch, sequence, workers, prefetch in legs:
        stream = stream_of(dataset, seed, batch, packing="contiguous", workers=workers, prefetch=prefetch)
        for step, seen in enumerate(leg(stream, steps, batch, ranks, micro_batch, sequence, consumed)):
            due = stream.rows(np.arange(batch) + consumed + step * batch)
            assert seen == Counter(rows_of([Batch.from_rows(due)]))
        consumed += steps * batch


def test_a_batch_is_tokens_labels_mask_and_documents(dataset: Manifest):
    stream = stream_of(dataset, lanes=1)
    (batch,) = next(Batches(stream, 6, 0, 1, 6))
    rows = stream.rows(np.arange(6))
    for ours, theirs in zip((batch.tokens_BT, batch.labels_BT, batch.docs.starts_BT), rows, strict=True):
        assert np.array_equal(ours.numpy(), theirs)
    assert batch.tokens_BT.dtype == batch.labels_BT.dtype == torch.int64
    assert torch.equal(batch.loss_mask_BT, batch.labels_BT != NOT_SCORED)
    assert batch.scored == batch.loss_mask_BT.sum()
    parts = batch.to("cpu").split(4)
    assert [len(part.tokens_BT) for part in parts] == [4, 2]
    assert torch.equal(torch.cat([part.docs.starts_BT for part in parts]), batch.docs.starts_BT)


def test_uneven_ranks_have_as_many_micro_batches_and_the_same_labels(dataset: Manifest):
    stream = stream_of(dataset)
    whole = sum(micro.scored for micro in next(Batches(stream, 8, 0, 1, 8)))
    by_rank = [next(Batches(stream, 8, rank, 3, 2)) for rank in range(3)]
    assert [[len(micro.tokens_BT) for micro in micro_batches] for micro_batches in by_rank] == [[2, 2]] * 3
    assert sum(micro.scored for micro_batches in by_rank for micro in micro_batches) == whole


# refused


def test_resuming_with_other_data_is_refused(dataset: Manifest):
    batches = Batches(stream_of(dataset), 4, 0, 1, 2)
    next(batches)
    saved = batches.state()
    assert saved["consumed"] == 4
    batches.check_state(saved)
    others = {"manifest": "0" * 64, "seed": 1, "sequence_length": 32, "packing": "bestfit", "lanes": 1, "mixture": "code: 1"}
    assert set(others) == set(stream_of(dataset).identity())
    for name, other in others.items():
        with pytest.raises(DataError, match=rf"data {name} .* must be the checkpoint's"):
            batches.check_state({**saved, name: other})
        with pytest.raises(DataError, match=rf"data {name} "):
            batches.check_state({key: value for key, value in saved.items() if key != name})


@pytest.mark.parametrize(("batch", "ranks", "micro_batch"), [(0, 1, 1), (4, 1, 0), (2, 4, 1)])
def test_a_batch_that_leaves_ranks_without_rows_is_refused(dataset: Manifest, batch: int, ranks: int, micro_batch: int):
    with pytest.raises(ConfigError, match=r"batch \(\d sequences\) must hold one for each of the ranks"):
        Batches(stream_of(dataset), batch, 0, ranks, micro_batch)


def test_a_sequence_longer_than_a_source_is_refused(dataset: Manifest):
    tokens = Counter()
    for shard in dataset.split("train"):
        tokens[shard.source] += shard.tokens
    shortest = min(tokens.values())
    assert len(stream_of(dataset, sequence_length=shortest))
    with pytest.raises(DataError, match=rf"data\.sequence_length \({shortest + 1}\) must be at most the {shortest} tokens of"):
        stream_of(dataset, sequence_length=shortest + 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sequence_length": 0}, r"data\.sequence_length \(0\) must be at least 1"),
        ({"lanes": 0}, r"data\.lanes \(0\) must be at least 1"),
        ({"lanes": 6}, r"data\.lanes \(6\) must be a power of two up to \d+; use 4 or 8"),
        ({"workers": -1}, r"data\.workers \(-1\)"),
        ({"workers": 1, "prefetch": 0}, r"data\.prefetch \(0\)"),
        ({"packing": "contiguous", "on_corrupt": "substitute"}, r"data\.on_corrupt \(substitute\) would break"),
        ({"mixture": {"pros": 1.0}}, r"data\.mixture names 'pros', .* did you mean 'prose'"),
        ({"mixture": {"prose": -1.0}}, r"data\.mixture\.prose \(-1\.0\) must not be negative"),
    ],
)
def test_settings_that_cannot_work_are_refused(dataset: Manifest, settings: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        stream_of(dataset, **settings)


def test_an_empty_split_is_refused(dataset: Manifest):
    with pytest.raises(DataError, match=r"split 'test' of .* is empty \(there is: train, validation\)"):
        TokenStream(dataset, "test", DataConfig("", T), seed=0)


def test_a_source_without_weight_is_not_trained_on(tokenizer_json: bytes, tmp_path: Path):
    def stream(weight: float, **settings: Any) -> TokenStream:
        folder = tmp_path / f"{weight} {len(settings)}"
        writer = DatasetWriter(folder, tokenizer_json, {"a": Source(weight, "x"), "b": Source(0.0, "x")})
        for source, token in (("a", 5), ("b", 6)):
            writer.add(source, "train", [token] * 100, 100)
        return stream_of(writer.finish(), **settings)

    assert set(np.unique(stream(0.5).rows(np.arange(50)).tokens)) == {0, 5}
    # a run may weigh the sources anew
    mixed = stream(0.5, mixture={"a": 0.0, "b": 2.0})
    assert set(np.unique(mixed.rows(np.arange(50)).tokens)) == {0, 6}
    assert mixed.identity()["mixture"] == "b: 1"
    with pytest.raises(DataError, match="has no source of positive weight"):
        stream(0.0)


def test_packing_takes_known_words_only():
    assert build(DataConfig, {"manifest": "m"}, {}).packing == "concat"
    with pytest.raises(ConfigError, match="packing"):
        build(DataConfig, {"manifest": "m", "packing": "best"}, {})


# threads


def reading_threads() -> int:
    return sum(thread.name.startswith("data prefetch") for thread in threading.enumerate())


@pytest.mark.parametrize("workers", [1, 3])
def test_closing_or_dropping_ends_the_threads(dataset: Manifest, workers: int):
    before = reading_threads()
    batches = Batches(stream_of(dataset, workers=workers, prefetch=4), 4, 0, 1, 2)
    next(batches)
    assert before < reading_threads() <= before + workers
    batches.close()
    assert reading_threads() == before
    batches = Batches(stream_of(dataset, workers=workers, prefetch=4), 4, 0, 1, 2)
    next(batches)
    del batches
    gc.collect()
    assert reading_threads() == before


# damage


def damage(manifest: Manifest, shards: list[int]) -> None:
    """Flip a byte of the tokens in each of these shards."""
    rng = random.Random(0)
    for k in shards:
        shard = manifest.shards[k]
        path = manifest.root / shard.path
        content = bytearray(path.read_bytes())
        content[shard.members["tokens.bin"].offset + rng.randrange(shard.tokens)] ^= 1
        path.write_bytes(content)


@pytest.mark.parametrize("workers", [0, 2])
def test_damage_met_while_reading_ahead_stops_the_loop(copy_of_dataset: Manifest, workers: int):
    damage(copy_of_dataset, list(range(len(copy_of_dataset.shards))))
    with pytest.raises(DataError, match=r"shard-\d+\.tar: block 0 of the tokens \(documents 0 to \d+\) is corrupt"):
        next(Batches(stream_of(copy_of_dataset, workers=workers), 4, 0, 1, 4))


@pytest.mark.parametrize("packing", ["concat", "bestfit"])
def test_damaged_rows_are_replaced_alike_everywhere_and_counted(copy_of_dataset: Manifest, packing: str):
    indices = np.arange(200)
    whole = stream_of(copy_of_dataset, packing=packing, on_corrupt="substitute")
    before = whole.rows(indices)
    assert whole.substituted == 0
    damage(copy_of_dataset, [0])
    stream = stream_of(copy_of_dataset, packing=packing, on_corrupt="substitute")
    after = stream.rows(indices)
    replaced = np.flatnonzero((before.tokens != after.tokens).any(1))
    assert 0 < len(replaced) <= stream.substituted < 150
    undamaged = {row.tobytes() for row in before.tokens}
    assert sum(row.tobytes() in undamaged for row in after.tokens[replaced]) > 0.5 * len(replaced)
    # in another order, from any position, by another reader
    again = stream_of(copy_of_dataset, packing=packing, on_corrupt="substitute").rows(indices[::-1].copy())
    assert all(np.array_equal(a, b[::-1]) for a, b in zip(after, again, strict=True))
    with pytest.raises(DataError, match="is corrupt"):
        stream_of(copy_of_dataset, packing=packing).rows(indices)


def test_nothing_left_to_substitute_stops_the_run(copy_of_dataset: Manifest):
    damage(copy_of_dataset, list(range(len(copy_of_dataset.shards))))
    with pytest.raises(DataError, match="is corrupt"):
        stream_of(copy_of_dataset, on_corrupt="substitute").rows(np.arange(4))
