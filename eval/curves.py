"""Loss against how far into its document a token stands, or how much the model had read before it; binned by octaves and halves."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

OCTAVES = 40


@dataclass(frozen=True)
class Bin:
    """Tokens at x in [first, last]; nats_per_token over them, its standard_error by documents. perplexity_to_here: at x <= last."""

    first: int
    last: int
    tokens: int
    documents: int
    nats_per_token: float
    standard_error: float | None
    perplexity_to_here: float


def curve(nats: np.ndarray, x: np.ndarray, lengths: np.ndarray) -> list[dict[str, Any]]:
    """Bins of tokens by x >= 1, the empty ones left out.

    Args:
        nats, x: per scored token, documents one after another. lengths: scored tokens of each document.
    """
    edges = np.unique(np.concatenate([[2**k, 3 * 2**k // 2] for k in range(OCTAVES)]))
    where = np.searchsorted(edges, x, side="right") - 1
    document = np.repeat(np.arange(len(lengths)), lengths)
    total, counted, found = 0.0, 0, []
    for k in np.unique(where):
        here = where == k
        sums = np.bincount(document[here], weights=nats[here], minlength=len(lengths))
        tokens = np.bincount(document[here], minlength=len(lengths))
        total, counted = total + sums.sum(), counted + int(tokens.sum())
        mean, error = ratio(sums, tokens)
        perplexity = float(np.exp(min(total / counted, 700.0)))
        last = min(int(edges[k + 1]) - 1, int(x.max()))
        found.append(asdict(Bin(int(edges[k]), last, int(tokens.sum()), int((tokens > 0).sum()), mean, error, perplexity)))
    return found


def ratio(sums: np.ndarray, counts: np.ndarray) -> tuple[float, float | None]:
    """sum(sums) / sum(counts) over those with a count, and its first-order standard error (Cochran 1977, ch. 6); None for one."""
    sums, counts = sums[counts > 0], counts[counts > 0]
    n, mean = len(sums), float(sums.sum() / counts.sum())
    if n < 2:
        return mean, None
    return mean, float(np.sqrt(n / (n - 1) * ((sums - mean * counts) ** 2).sum()) / counts.sum())


def draw(figure: Any, results: dict[str, dict[str, Any]]) -> None:
    """Two panels: nats per token by position, and perplexity of all tokens with at most so much context. results: by model."""
    by_position, by_context = figure.subplots(1, 2)
    for name, details in results.items():
        bins = details["by_position"]
        x, y = [b["first"] for b in bins], np.array([b["nats_per_token"] for b in bins])
        error = np.array([b["standard_error"] or 0.0 for b in bins])
        (line,) = by_position.plot(x, y, marker=".", label=name)
        by_position.fill_between(x, y - error, y + error, alpha=0.2, color=line.get_color())
        bins = details["by_context"]
        by_context.plot([b["last"] for b in bins], [b["perplexity_to_here"] for b in bins], marker=".", label=name)
    by_position.set(xscale="log", xlabel="position in the document", ylabel="nats per token (band: standard error)")
    by_context.set(xscale="log", xlabel="tokens of context at most", ylabel="token perplexity")
    for axes in (by_position, by_context):
        axes.grid(alpha=0.3)
        axes.legend()
