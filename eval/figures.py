"""Perplexity figures from nats per document, with standard errors by resampling documents."""

import math
from dataclasses import dataclass

import numpy as np

RESAMPLES = 1000


@dataclass(frozen=True)
class Figure:
    """value, and its standard error; None where there are too few documents for one."""

    value: float
    standard_error: float | None


def figures(nats: np.ndarray, tokens: np.ndarray, text_bytes: np.ndarray, seed: int = 0) -> dict[str, Figure]:
    """nats per token, token perplexity and bits per UTF-8 byte, over documents drawn again `RESAMPLES` times with replacement."""
    rng, n = np.random.default_rng(seed), len(nats)
    table = np.stack([nats, tokens, text_bytes]).astype(np.float64)
    sums = np.stack([table @ rng.multinomial(n, np.full(n, 1 / n)) for _ in range(RESAMPLES)], 1) if n > 1 else None
    return {name: Figure(*_value_and_error(rule, table.sum(1), sums)) for name, rule in _RULES.items()}


_RULES = {
    "nats_per_token": lambda s: s[0] / s[1],
    "token_perplexity": lambda s: np.exp(s[0] / s[1]),
    "bits_per_byte": lambda s: s[0] / math.log(2) / s[2],
}


def _value_and_error(rule, total: np.ndarray, sums: np.ndarray | None) -> tuple[float, float | None]:
    if sums is None:
        return float(rule(total)), None
    # a draw of empty documents alone has no figure
    drawn = rule(sums[:, (sums[1] > 0) & (sums[2] > 0)])
    return float(rule(total)), float(drawn.std(ddof=1))
