"""The law of next-token prediction (He and Su, arXiv:2408.13442): each layer takes the same share off what is left to predict.

    PR_l = sum (y - y_hat)^2 / sum (y - mean y)^2           PR_l ~ rho^l PR_0

y is the number of the next token, y_hat its least-squares fit by the stream behind layer l (and a constant). The numbers of a
byte-pair vocabulary follow frequency, roughly, so they say something; other vocabularies' need not. The last layer's stream is read
behind the final norm, as in the published models' hidden states. rho comes from a line through log PR_l, l = 1 .. L, and
`pearson_r` says how straight that line is.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import linregress
from torch import Tensor
from torch.nn import functional as F

from eval.figures import Figure, Result
from eval.probes.watched import decoder_of
from eval.subject import Subject
from eval.texts import TextConfig, read_texts
from llm.errors import ConfigError, DataError
from llm.model import Decoder

# fewer tokens per coefficient fit by chance
TOKENS_PER_COEFFICIENT = 10
LEAST_LAYERS = 3


@dataclass(frozen=True)
class NextTokenLawConfig(TextConfig):
    """max_tokens: of the text. window: of each document so many tokens are read."""

    max_tokens: int | None = 100_000
    window: int = 1024

    def check(self) -> None:
        """Raises ConfigError."""
        super().check()
        if self.window < 2:
            raise ConfigError(f"window ({self.window}) must be at least 2 tokens")


@torch.no_grad()
def next_token_law(subject: Subject, config: NextTokenLawConfig) -> Result:
    """Raises ConfigError, DataError."""
    decoder = decoder_of(subject, "next_token_law")
    if len(decoder.blocks) < LEAST_LAYERS:
        raise ConfigError(f"next_token_law draws a line through layers, and {subject.name} has {len(decoder.blocks)}; leave it out")
    documents = [document[: config.window + 1] for document in read_texts(subject, config).tokens if len(document) > 1]
    n, coefficients = sum(len(document) - 1 for document in documents), decoder.config.width + 1
    if n < TOKENS_PER_COEFFICIENT * coefficients:
        raise DataError(
            f"text of {n} tokens is too short for {coefficients} coefficients; "
            f"give at least {TOKENS_PER_COEFFICIENT * coefficients} with max_tokens, window or another text"
        )
    squares: list[Squares] = []
    with subject.progress("documents", len(documents)) as advance:
        for document in documents:
            tokens = torch.from_numpy(document)[None].long().to(subject.model.device)
            streams = streams_of(decoder, tokens[:, :-1])
            squares = squares or [Squares(coefficients) for _ in streams]
            for layer, x_TD in zip(squares, streams, strict=True):
                layer.add(x_TD, tokens[0, 1:])
            advance(1)
    residual = [layer.residual() for layer in squares]
    line = linregress(range(1, len(residual)), [math.log(max(r, 1e-300)) for r in residual[1:]])
    figures = {"rho": Figure(math.exp(line.slope), n), "pearson_r": Figure(float(line.rvalue), len(residual) - 1)}
    figures |= {f"layer {i} residual": Figure(r, n) for i, r in enumerate(residual)}
    fit = {"rho": math.exp(line.slope), "intercept": float(line.intercept), "pearson_r": float(line.rvalue)}
    return Result(figures, {"residual": residual, **fit}, f"{n:,} tokens; layer 0 is the embedding")


def streams_of(decoder: Decoder, tokens_BT: Tensor) -> list[Tensor]:
    """`[T, D]` each: the embedding, and the stream behind every layer of the only row."""
    kept: list[Tensor] = []
    last_BTD, _ = decoder.hidden(F.embedding(tokens_BT, decoder.embedding), kept=kept)
    return [x_BTD[0] for x_BTD in (*kept, last_BTD)]


class Squares:
    """Sums of products of features, a constant and y, from which least squares follow: memory does not grow with the text."""

    def __init__(self, coefficients: int):
        self.sums = np.zeros((coefficients + 1, coefficients + 1))

    def add(self, x_TD: Tensor, y_T: Tensor) -> None:
        x = x_TD.double().cpu().numpy()
        table = np.column_stack([np.ones(len(x)), x, y_T.cpu().numpy()])
        self.sums += table.T @ table

    def residual(self) -> float:
        """1 - R^2. Features that depend on one another are fitted as one."""
        n, mean = self.sums[0, 0], self.sums[0] / self.sums[0, 0]
        centred = self.sums - n * np.outer(mean, mean)
        xx, xy, yy = centred[1:-1, 1:-1], centred[1:-1, -1], centred[-1, -1]
        scale = np.sqrt(np.diag(xx).clip(1e-300))
        explained = (xy / scale) @ np.linalg.pinv(xx / np.outer(scale, scale), rcond=1e-10, hermitian=True) @ (xy / scale)
        return float(min(1.0, max(0.0, 1 - explained / yy)))


def draw_law(figure: Any, results: dict[str, dict[str, Any]]) -> None:
    """The residual behind every layer, logarithmic, with the fitted line. results: by model."""
    axes = figure.subplots()
    for name, details in results.items():
        residual = details["residual"]
        (line,) = axes.plot(residual, marker="o", ls="", label=f"{name}: rho {details['rho']:.3f}, r {details['pearson_r']:.3f}")
        layers = np.arange(1, len(residual))
        axes.plot(layers, np.exp(details["intercept"]) * details["rho"] ** layers, color=line.get_color(), lw=0.8)
    axes.set(yscale="log", xlabel="layer", ylabel="prediction residual, 1 - R²")
    axes.grid(alpha=0.3)
    axes.legend()
