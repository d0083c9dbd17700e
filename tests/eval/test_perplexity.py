"""Perplexity: a carried state is one long pass; windows are those of the rule; lanes change no figure; errors are told."""

import math
from dataclasses import asdict, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.curves import curve, ratio
from eval.models import braid
from eval.perplexity import PerplexityConfig, perplexity
from eval.texts import TextConfig, read_texts
from eval.windows import contexts, cut, positions
from llm.errors import ConfigError, DataError
from llm.ops.cross_entropy import cross_entropy_per_token


def alone(subject, tokens: np.ndarray) -> np.ndarray:
    """nats of the tokens but the first, in one pass."""
    x = torch.from_numpy(tokens.astype(np.int64))[None]
    with torch.no_grad():
        return cross_entropy_per_token(subject.model.decoder(x[:, :-1]).logits, x[:, 1:])[0].numpy()


def held_out(subject):
    return read_texts(subject, TextConfig())


def total(result) -> float:
    return result.figures["nats_per_token"].value * result.details["text"]["tokens"]


def test_carried_state_is_one_long_pass_per_document(subject):
    texts = held_out(subject)
    nats = sum(alone(subject, document).sum() for document in texts.tokens)
    found = perplexity(subject, PerplexityConfig(lanes=3))
    values = {name: figure.value for name, figure in found.figures.items()}
    assert values["nats_per_token"] * texts.scored.sum() == pytest.approx(nats, rel=1e-10)
    assert values["bits_per_byte"] == pytest.approx(nats / math.log(2) / texts.text_bytes.sum(), rel=1e-10)
    assert values["token_perplexity"] == pytest.approx(math.exp(nats / texts.scored.sum()), rel=1e-10)
    assert found.details["text"]["tokens"] == sum(len(d) - 1 for d in texts.tokens)
    assert found.details["text"]["documents"] == len(texts.tokens) == found.figures["bits_per_byte"].n == 13


@pytest.mark.parametrize("stride", [None, 5, 1])
def test_windows_are_read_afresh_and_scored_where_the_last_one_ended(subject, stride):
    nats, step = 0.0, stride or 16
    for document in held_out(subject).tokens:
        scored = 1
        for first in range(0, len(document) - 1, step):
            if scored < len(document):
                window = document[first : first + 17]
                nats += alone(subject, window)[scored - first - 1 :].sum()
                scored = first + len(window)
    assert total(perplexity(subject, PerplexityConfig(rule="window", stride=stride))) == pytest.approx(nats, rel=1e-10)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=5),
    st.sampled_from(["stream", "window", "harness"]),
    st.integers(1, 12),
    st.integers(1, 12),
)
def test_each_token_is_scored_once_with_the_context_that_its_rule_promises(lengths, rule, window, stride):
    stride = min(stride, window) if rule == "window" else window
    pieces = cut(np.array(lengths), rule, window, stride)
    scored = [(p.document, t) for p in pieces for t in range(p.scored, p.stop)]
    assert sorted(scored) == [(k, t) for k, n in enumerate(lengths) for t in range(1, n)]
    context, position = contexts(pieces, np.array(lengths)), positions(np.array(lengths))
    if rule == "stream":
        assert (context == position).all()
    else:
        assert (context >= np.minimum(position, max(1, window - stride))).all()
        assert max(p.inputs for p in pieces or cut(np.array([2]), rule, 1, 1)) <= window


@pytest.mark.parametrize("rule", ["stream", "window", "harness"])
def test_lanes_and_batches_change_no_figure(subject, rule, monkeypatch):
    varied = [{"lanes": 1}, {"lanes": 2}, {"lanes": 50}] + ([{"window": 5}, {"window": 1000}] if rule == "stream" else [])
    values = [total(perplexity(subject, PerplexityConfig(rule=rule, **setting))) for setting in varied]
    monkeypatch.setattr("eval.score.LOGITS", 1)
    monkeypatch.setattr("eval.lanes.LANE_TOKENS", 1)
    values.append(total(perplexity(subject, PerplexityConfig(rule=rule))))
    assert values == pytest.approx([values[0]] * len(values), rel=1e-10)


def test_curves_add_up_to_the_figure(subject):
    found = perplexity(subject, PerplexityConfig(rule="window", stride=3))
    for name in ("by_position", "by_context"):
        bins = found.details[name]
        assert sum(b["tokens"] for b in bins) == found.details["text"]["tokens"]
        assert sum(b["tokens"] * b["nats_per_token"] for b in bins) == pytest.approx(total(found), rel=1e-10)
        assert bins[-1]["perplexity_to_here"] == pytest.approx(found.figures["token_perplexity"].value, rel=1e-10)
        assert all(later["first"] == b["last"] + 1 for b, later in pairwise(bins))
    assert found.details["by_context"][-1]["last"] <= 16 < found.details["by_position"][-1]["last"]
    (source,) = found.details["by_source"].values()
    assert source["bits_per_byte"] == asdict(found.figures["bits_per_byte"])


def test_a_bins_standard_error_is_the_bootstraps():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 9, 400)
    sums = counts * rng.normal(3, 1, 400)
    draws = [rng.integers(0, 400, 400) for _ in range(2000)]
    mean, error = ratio(sums, counts)
    assert mean == pytest.approx(sums.sum() / counts.sum())
    assert error == pytest.approx(np.std([sums[d].sum() / counts[d].sum() for d in draws]), rel=0.1)
    assert ratio(sums[:1], np.ones(1))[1] is None


def test_a_curve_of_one_document_has_no_error():
    (low, high) = curve(np.array([1.0, 3.0]), np.array([1, 5]), np.array([2]))
    assert (low["first"], low["last"], low["nats_per_token"], low["standard_error"]) == (1, 1, 1.0, None)
    assert (high["first"], high["last"], high["perplexity_to_here"]) == (4, 5, pytest.approx(math.exp(2)))


def test_limits_take_whole_documents_in_one_order(subject):
    few, more, one = (read_texts(subject, TextConfig(max_tokens=limit, seed=3)) for limit in (100, 250, 1))
    assert few.scored.sum() <= 100
    assert {d.tobytes() for d in few.tokens} <= {d.tobytes() for d in more.tokens}
    assert len(one.tokens) == 1


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"lanes": 0}, r"lanes \(0\)"),
        ({"window": 0}, r"window \(0\)"),
        ({"max_bytes": 0}, r"max_bytes \(0\) must be at least 1"),
        ({"stride": 4}, r"stride \(4\) has no effect with rule=stream"),
        ({"rule": "window", "window": 4, "stride": 5}, r"stride \(5\) must be between 1 and the window \(4\)"),
        ({"text": "a", "dataset": "b"}, r"two texts"),
    ],
)
def test_bad_settings_are_refused(subject, values, sentence):
    with pytest.raises(ConfigError, match=sentence):
        perplexity(subject, PerplexityConfig(**values))


def test_a_split_without_documents_is_told(subject):
    with pytest.raises(DataError, match="test"):
        perplexity(subject, PerplexityConfig(split="test"))


def test_a_model_that_does_not_say_its_data_needs_a_text(subject):
    with pytest.raises(ConfigError, match="text=PATH or dataset=FOLDER"):
        perplexity(replace(subject, dataset=None), PerplexityConfig())


def test_caches_do_not_grow_with_the_lane(subject, monkeypatch):
    """One lane of all documents: full attention keeps the slots of the document it is in, not of those that ended."""
    slots, right = [], braid.trimmed
    monkeypatch.setattr(braid, "trimmed", lambda *state: slots.append(right(*state)) or slots[-1])
    texts = held_out(subject)
    perplexity(subject, PerplexityConfig(lanes=1, window=16))
    longest = max(state["layers.2.attention.k"].shape[1] for state in slots)
    assert longest < max(texts.scored) + 16 < texts.scored.sum()
