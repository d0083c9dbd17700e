"""The benchmark of encoding measures what it says."""

from benchmarks.data_tokenizing import OURS, THEIRS, Rates, measure, shortfalls, texts
from data_prep.bpe import train_bpe


def test_both_sides_give_the_same_ids():
    corpus = texts([], megabytes=0.2)
    rates = measure(corpus, train_bpe(corpus, 400), rounds=1)
    assert rates.encoder == "tiktoken"
    assert rates.rates.keys() == {OURS, THEIRS}
    assert rates.tokens > 10_000


def test_what_misses_its_floor_is_said():
    rates = Rates({OURS: 0.9, THEIRS: 0.3}, 1, "tiktoken")
    assert shortfalls(rates, 1.0) == ["0.90 million tokens per CPU-second, at least 1.00 are asked for"]
    assert not shortfalls(rates, 0.9)
    assert shortfalls(Rates({OURS: 2.0, THEIRS: 2.0}, 1, "tokenizers"), 1.0) == [
        "1.00 times tokenizers, at least 2.00 are asked for"
    ]
