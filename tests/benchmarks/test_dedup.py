"""The benchmark of deduplication: its sides run and agree, and what is below a floor is named."""

from benchmarks.dedup import OURS, corpus, measure, shortfalls


def test_sides_run_and_find_the_same_copies():
    documents, near = corpus(300)
    seconds, dropped = measure(documents, rounds=1)
    assert len(documents) == 300
    assert list(seconds) == list(dropped)
    assert next(iter(seconds)) == OURS
    assert len(near) > 20
    assert all(set(near) <= found for found in dropped.values())


def test_what_is_below_its_floor_is_named():
    seconds = {OURS: 1.0, "datasketch": 4.0, "datasketch, xxh32": 2.5}
    assert shortfalls(seconds, 1.0, share=1.0) == ["2.50x datasketch, at least 3.00x is asked for"]
    assert shortfalls(seconds, 1.0, share=0.8) == []
    assert shortfalls(seconds | {"datasketch, xxh32": 3.5}, 0.99, share=1.0) == ["recall 0.9900, at least 0.999 is asked for"]
