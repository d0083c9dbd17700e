"""Perplexity: carried state is one long forward pass; lanes and windows change no figure; errors are told."""

import math

import numpy as np
import pytest
import torch

from eval import lanes
from eval.held_out import held_out
from eval.perplexity import PerplexityConfig, perplexity
from eval.tasks import evaluate
from llm.errors import ConfigError, DataError
from llm.ops.cross_entropy import cross_entropy_per_token


def alone(model, document: np.ndarray) -> float:
    """nats of one document's text in one pass."""
    tokens = torch.from_numpy(document.astype(np.int64))[None]
    with torch.no_grad():
        logits = model(tokens[:, :-1]).logits
    return cross_entropy_per_token(logits, tokens[:, 1:]).sum().item()


def test_carried_state_is_one_long_pass_per_document(subject):
    texts = held_out(subject.manifest, "validation", None, None, 0)
    nats = sum(alone(subject.model, document) for document in texts.tokens)
    found = perplexity(subject, PerplexityConfig(lanes=3))
    assert found["nats_per_token"]["value"] * texts.scored.sum() == pytest.approx(nats, rel=1e-10)
    assert found["bits_per_byte"]["value"] == pytest.approx(nats / math.log(2) / texts.text_bytes.sum(), rel=1e-10)
    assert found["token_perplexity"]["value"] == pytest.approx(math.exp(nats / texts.scored.sum()), rel=1e-10)
    assert found["tokens"] == sum(len(d) - 1 for d in texts.tokens)
    assert found["documents"] == len(texts.tokens) == 13


def test_without_carrying_every_window_starts_fresh(subject):
    texts = held_out(subject.manifest, "validation", None, None, 0)
    windows = [d[i : i + 17] for d in texts.tokens for i in range(0, len(d) - 1, 16)]
    nats = sum(alone(subject.model, window) for window in windows)
    found = perplexity(subject, PerplexityConfig(carry=False))
    assert found["nats_per_token"]["value"] * texts.scored.sum() == pytest.approx(nats, rel=1e-10)


@pytest.mark.parametrize("carry", [True, False])
def test_lanes_and_batches_change_no_figure(subject, carry):
    settings = [{"lanes": 1}, {"lanes": 2}, {"lanes": 50}] + ([{"window": 5}, {"window": 1000}] if carry else [])
    values = [perplexity(subject, PerplexityConfig(carry=carry, **setting))["bits_per_byte"]["value"] for setting in settings]
    assert values == pytest.approx([values[0]] * len(values), rel=1e-10)


def test_limits_take_whole_documents_in_one_order(subject):
    few, more = (held_out(subject.manifest, "validation", limit, None, 3) for limit in (100, 250))
    assert few.scored.sum() <= 100
    assert {d.tobytes() for d in few.tokens} <= {d.tobytes() for d in more.tokens}
    assert len(held_out(subject.manifest, "validation", 1, None, 3).tokens) == 1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [({"lanes": 0}, r"lanes \(0\)"), ({"window": 0}, r"window \(0\)"), ({"max_bytes": 0}, r"max_bytes \(0\) must be at least 1")],
)
def test_bad_settings_are_refused(subject, settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        perplexity(subject, PerplexityConfig(**settings))


def test_a_split_without_documents_is_told(subject):
    with pytest.raises(DataError, match="test"):
        perplexity(subject, PerplexityConfig(split="test"))


def test_an_unknown_task_or_setting_is_told():
    with pytest.raises(ConfigError, match="did you mean 'perplexity'"):
        evaluate("runs/none", "perplexty", [])
    with pytest.raises(ConfigError, match="Did you mean: 'lanes'"):
        evaluate("runs/none", "perplexity", ["lane=3"])


def test_caches_do_not_grow_with_the_lane(subject, monkeypatch):
    """One lane of all documents: full attention keeps the slots of the document it is in, not of those that ended."""
    texts = held_out(subject.manifest, "validation", None, None, 0)
    slots = []
    right = lanes.trimmed
    monkeypatch.setattr(lanes, "trimmed", lambda *state: slots.append(right(*state)) or slots[-1])
    perplexity(subject, PerplexityConfig(lanes=1, window=16))
    longest = max(state["layers.2.attention.k"].shape[1] for state in slots)
    assert longest < max(texts.scored) + 16 < texts.scored.sum()
