"""The law of next-token prediction: residuals are NumPy's least squares', and a planted law is found."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from eval.probes import next_token_law as law
from eval.probes.next_token_law import NextTokenLawConfig, Squares, draw_law, next_token_law, streams_of
from eval.texts import read_texts
from llm.errors import ConfigError, DataError

CONFIG = NextTokenLawConfig(window=64)


def documents_of(subject) -> list[np.ndarray]:
    return [document[:65] for document in read_texts(subject, CONFIG).tokens if len(document) > 1]


def residual_of(x: np.ndarray, y: np.ndarray) -> float:
    features = np.column_stack([np.ones(len(x)), x])
    fit = features @ np.linalg.lstsq(features, y, rcond=None)[0]
    return float(((y - fit) ** 2).sum() / ((y - y.mean()) ** 2).sum())


def test_sums_give_numpys_least_squares():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 5)) * [1, 10, 0.1, 1, 1] + 7, rng.integers(0, 50_000, 300)
    y = (y + 9_000 * x[:, 0]).astype(np.int64)
    # the last feature says nothing new
    x[:, 4] = x[:, 0] - 2 * x[:, 1]
    found = Squares(6)
    for part in np.array_split(np.arange(300), 7):
        found.add(torch.from_numpy(x[part]), torch.from_numpy(y[part]))
    assert found.residual() == pytest.approx(residual_of(x, y), rel=1e-8)
    constant = Squares(2)
    constant.add(torch.ones(9, 1), torch.arange(9))
    assert constant.residual() == pytest.approx(1)


def test_residuals_of_a_braid_are_those_of_its_streams(subject):
    found = next_token_law(subject, CONFIG)
    documents = documents_of(subject)
    with torch.no_grad():
        read = [streams_of(subject.model.decoder, torch.from_numpy(d[:-1])[None].long()) for d in documents]
    y = np.concatenate([d[1:] for d in documents]).astype(float)
    right = [residual_of(torch.cat(layer).numpy(), y) for layer in zip(*read, strict=True)]
    assert found.details["residual"] == pytest.approx(right, rel=1e-6)
    assert len(right) == 4
    from matplotlib.figure import Figure

    figure = Figure()
    draw_law(figure, {"a": found.details})
    assert figure.axes[0].has_data()


def test_a_planted_law_is_found(subject, monkeypatch):
    """Layer l shows y under noise of such size that a share of 0.9 x 0.8^l stays unexplained."""
    rng, documents = np.random.default_rng(1), documents_of(subject)
    std, following = np.concatenate([d[1:] for d in documents]).std(), iter(documents)

    def planted(decoder, tokens_BT):
        y = next(following)[1:].astype(float)
        left = [0.9 * 0.8**layer for layer in range(4)]
        return [torch.from_numpy(y + rng.normal(size=len(y)) * std * np.sqrt(r / (1 - r)))[:, None].repeat(1, 16) for r in left]

    monkeypatch.setattr(law, "streams_of", planted)
    found = next_token_law(subject, CONFIG)
    assert found.details["rho"] == pytest.approx(0.8, abs=0.1)
    assert found.details["pearson_r"] < -0.95


def test_what_a_user_gets_wrong_is_said(subject):
    with pytest.raises(DataError, match=r"text of \d+ tokens is too short for 17 coefficients; give at least 170"):
        next_token_law(subject, NextTokenLawConfig(max_tokens=20))
    with pytest.raises(ConfigError, match=r"window \(1\)"):
        next_token_law(subject, NextTokenLawConfig(window=1))
    with pytest.raises(ConfigError, match="looks inside a decoder of ours"):
        next_token_law(replace(subject, model=object()), CONFIG)
