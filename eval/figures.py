"""Figures from nats per document, with standard errors by resampling documents."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

RESAMPLES = 1000

# of the sums (nats, tokens, bytes of text)
RULES: dict[str, Callable[[np.ndarray], Any]] = {
    "nats_per_token": lambda sums: sums[0] / sums[1],
    "token_perplexity": lambda sums: np.exp(sums[0] / sums[1]),
    "bits_per_byte": lambda sums: sums[0] / math.log(2) / sums[2],
}


def figures(nats: np.ndarray, tokens: np.ndarray, text_bytes: np.ndarray, seed: int = 0) -> dict[str, dict[str, float | None]]:
    """Each rule's `value` and its `standard_error` when documents are drawn again with replacement; None for a single document."""
    table = np.stack([nats, tokens, text_bytes]).astype(np.float64)
    drawn = _resampled(table, np.random.default_rng(seed)) if len(nats) > 1 else None
    return {
        name: {
            "value": float(rule(table.sum(1))),
            "standard_error": None if drawn is None else float(rule(drawn).std(ddof=1)),
        }
        for name, rule in RULES.items()
    }


def _resampled(table: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`[3, draws]` sums over as many documents as there are, drawn with replacement; draws without any text are left out."""
    n = table.shape[1]
    sums = np.stack([table @ rng.multinomial(n, np.full(n, 1 / n)) for _ in range(RESAMPLES)], 1)
    return sums[:, (sums[1] > 0) & (sums[2] > 0)]
