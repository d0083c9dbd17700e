"""Figures: a value, its standard error, and over how many things it is taken; of texts, by resampling documents."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 1000
# exponents beyond it have no float64
LARGEST = 700.0


@dataclass(frozen=True)
class Figure:
    """n: the independent things that the value is an average over. standard_error: of the value; None: not known."""

    value: float
    n: int
    standard_error: float | None = None


@dataclass(frozen=True)
class Result:
    """What an evaluation found. figures: by name, for tables. details: everything else, as JSON has it. over: what the figures are
    taken over and by which rule, in words.
    """

    figures: dict[str, Figure]
    details: dict[str, Any]
    over: str = ""


def _exp(x: Any) -> Any:
    return np.exp(np.minimum(x, LARGEST))


# of the sums (nats, tokens, bytes, words of text)
RULES: dict[str, Callable[[np.ndarray], Any]] = {
    "nats_per_token": lambda sums: sums[0] / sums[1],
    "token_perplexity": lambda sums: _exp(sums[0] / sums[1]),
    "bits_per_byte": lambda sums: sums[0] / math.log(2) / sums[2],
    "word_perplexity": lambda sums: _exp(sums[0] / sums[3]),
}


def text_figures(
    nats: np.ndarray, tokens: np.ndarray, text_bytes: np.ndarray, words: np.ndarray | None = None, seed: int = 0
) -> dict[str, Figure]:
    """Each rule's value and its standard error when documents are drawn again with replacement; None for a single document.

    Args:
        nats, tokens, text_bytes, words: of each document; without words, nothing is said per word.
    """
    table = np.stack([nats, tokens, text_bytes] + ([] if words is None else [words])).astype(np.float64)
    drawn = _resampled(table, np.random.default_rng(seed)) if len(nats) > 1 else None
    return {
        name: Figure(
            float(rule(table.sum(1))), len(nats), None if drawn is None or drawn.shape[1] < 2 else float(rule(drawn).std(ddof=1))
        )
        for name, rule in RULES.items()
        if words is not None or name != "word_perplexity"
    }


def _resampled(table: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`[rows, draws]` sums over as many documents as there are, drawn with replacement; draws without any text are left out."""
    n = table.shape[1]
    sums = np.stack([table @ rng.multinomial(n, np.full(n, 1 / n)) for _ in range(RESAMPLES)], 1)
    return sums[:, (sums > 0)[1:].all(0)]
