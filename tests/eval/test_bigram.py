"""The bigram baseline against a slow dictionary form; and its probabilities add up to one."""

import itertools
import math
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pytest

from eval.bigram import BigramConfig, bigram, distinct, fit
from eval.texts import TextConfig, read_texts
from llm.data import TokenStream


def slow(rows: list[list[int]], vocabulary: int):
    """P(w | v) of interpolated absolute discounting, from its formula."""
    pairs = Counter((v, w) for row in rows for v, w in itertools.pairwise(row))
    labels, contexts, followers = Counter(), Counter(), defaultdict(set)
    for (v, w), n in pairs.items():
        labels[w] += n
        contexts[v] += n
        followers[v].add(w)
    once, twice = (sum(n == k for n in pairs.values()) for k in (1, 2))
    discount = once / (once + 2 * twice)

    def probability(v: int, w: int) -> float:
        unigram = (labels[w] + 1) / (sum(labels.values()) + vocabulary)
        if not contexts[v]:
            return unigram
        return (max(pairs[v, w] - discount, 0) + discount * len(followers[v]) * unigram) / contexts[v]

    return probability


def test_it_is_the_formula_and_adds_up_to_one():
    rng = np.random.default_rng(0)
    rows = np.minimum(rng.geometric(0.2, (30, 20)), 19)
    model, probability = fit([(part[:, :-1], part[:, 1:]) for part in (rows[:7], rows[7:])], 25), slow(rows.tolist(), 25)
    for v in range(25):
        found = model.probability(np.full(25, v), np.arange(25))
        assert found == pytest.approx([probability(v, w) for w in range(25)], rel=1e-12)
        assert found.sum() == pytest.approx(1, rel=1e-12)


def test_padding_is_no_token():
    tokens, labels = np.array([[1, 2, 0, 0], [2, 0, 0, 0]]), np.array([[2, 3, -100, -100], [3, -100, -100, -100]])
    assert fit([(tokens, labels)], 5).counts.sum() == 3


def test_it_counts_what_was_trained_on_and_scores_the_same_text(subject):
    found = bigram(subject, BigramConfig())
    stream = TokenStream(subject.manifest(), "train", subject.dataset, subject.trained.seed)
    read = distinct(stream, np.arange(subject.trained.consumed))
    rows = stream.rows(read)
    texts = read_texts(subject, TextConfig())
    pairs = np.stack([rows.tokens, rows.labels], -1).reshape(-1, 2)
    pairs = pairs[pairs[:, 1] >= 0]
    probability = slow(pairs.tolist(), subject.model.vocab_size)
    nats = -sum(math.log(probability(v, w)) for d in texts.tokens for v, w in zip(d.tolist(), d.tolist()[1:], strict=False))
    assert found.figures["nats_per_token"].value == pytest.approx(nats / texts.scored.sum(), rel=1e-10)
    assert found.details["fitted_on"]["pairs"] == len(pairs) > 0


def test_a_second_epoch_is_counted_once(subject):
    stream = TokenStream(subject.manifest(), "train", subject.dataset, subject.trained.seed)
    assert len(distinct(stream, np.arange(3 * len(stream)))) == len(stream)


def test_what_is_in_quarantine_is_not_counted(subject):
    stream = TokenStream(subject.manifest(), "train", subject.dataset, subject.trained.seed)
    records = [{"rows": [8, 24], "stream": stream.identity()}]
    trained = replace(subject.trained, consumed=16, quarantine=records)
    found = bigram(replace(subject, trained=trained), BigramConfig())
    read = stream.rows(np.array([*range(8), *range(24, 32)]))
    assert found.details["fitted_on"]["pairs"] == (read.labels >= 0).sum()
    nats = found.figures["nats_per_token"].value
    assert nats != bigram(replace(subject, trained=replace(trained, quarantine=[])), BigramConfig()).figures["nats_per_token"].value
