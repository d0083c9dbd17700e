"""The bigram baseline against a slow dictionary form; and its probabilities add up to one."""

import itertools
import math
from collections import Counter, defaultdict
from dataclasses import asdict, replace

import numpy as np
import pytest

from eval.bigram import BigramConfig, bigram, distinct, fit, read_in_training
from eval.subject import Trained
from eval.texts import TextConfig, read_texts
from llm.data import TokenStream
from llm.data.permutation import source_key
from llm.errors import DataError
from llm.train.config import build_config
from llm.train.phases import phases_of

# of the subject's run
SEED = 0


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
    stream = TokenStream(subject.manifest(), "train", subject.dataset, SEED)
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
    stream = TokenStream(subject.manifest(), "train", subject.dataset, SEED)
    assert len(distinct(stream, np.arange(3 * len(stream)))) == len(stream)


def test_what_is_in_quarantine_is_not_counted(subject):
    stream = TokenStream(subject.manifest(), "train", subject.dataset, SEED)
    records = [{"rows": [8, 24], "stream": stream.identity()}]
    trained = replace(subject.trained, consumed=32, quarantine=records)
    found = bigram(replace(subject, trained=trained), BigramConfig())
    read = stream.rows(np.array([*range(8), *range(24, 32)]))
    assert found.details["fitted_on"]["pairs"] == (read.labels >= 0).sum()
    nats = found.figures["nats_per_token"].value
    assert nats != bigram(replace(subject, trained=replace(trained, quarantine=[])), BigramConfig()).figures["nats_per_token"].value


def test_each_phase_is_counted_as_it_was_read(subject):
    """The second has an order of its own; the run's first sequences are those of the first phase, then of the second."""
    phases = [{"steps": 2}, {"steps": 3, "data": {"sequence_length": 8}, "train": {"batch": 4}}]
    data = {"manifest": subject.dataset.manifest, "sequence_length": 16}
    values = {"name": "phased", "model": asdict(subject.model.decoder.config), "train": {"batch": 8, "phases": phases}}
    run = build_config({**values, "data": data})
    phased = replace(subject, trained=Trained(phases_of(run), (0, 16), 28))
    (first, a), (second, b) = read_in_training(phased, phased.trained, BigramConfig())
    assert (a.tolist(), b.tolist()) == ([*range(16)], [*range(16, 28)])
    plain = TokenStream(subject.manifest(), "train", subject.dataset, SEED)
    anew = TokenStream(subject.manifest(), "train", replace(subject.dataset, sequence_length=8), source_key(SEED, "phase 1"))
    assert (first.rows(a).labels == plain.rows(a).labels).all()
    assert (second.rows(b).labels == anew.rows(b - 16).labels).all()
    fitted = bigram(phased, BigramConfig()).details["fitted_on"]
    both = [(plain, distinct(plain, a)), (anew, distinct(anew, b - 16))]
    assert fitted["pairs"] == sum((stream.rows(rows).labels >= 0).sum() for stream, rows in both)
    assert (fitted["of"], fitted["sequences"]) == (28, sum(len(rows) for _, rows in both))
    for wanted in (10, 20, 40):
        parts = read_in_training(phased, phased.trained, BigramConfig(sequences=wanted))
        assert [len(rows) for _, rows in parts] == [min(wanted, 16), max(0, wanted - 16)]
    gone = build_config({**values, "data": {**data, "manifest": "gone"}})
    lost = Trained([phases_of(gone)[0], phased.trained.phases[1]], (0, 16), 28)
    with pytest.raises(DataError, match=r"train.phases\[0\]: .*gone"):
        bigram(replace(phased, trained=lost), BigramConfig())
