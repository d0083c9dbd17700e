"""Verbatim short-term memory (Armeni et al., arXiv:2210.13569): how surprising is a list of nouns when it comes up again?

A text holds a list, `delay` tokens of other text, and a second list: the `same` one, the same nouns in another order (`permuted`),
or `new` ones. The ratio of the second list's nats to the first's is near 1 for who has forgotten, and near 0 for who knows the list
by heart; `permuted` says how much of that is knowing which words came up, and `new` how much is knowing that a list comes.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eval.curves import ratio
from eval.figures import Figure, Result
from eval.models.language_model import LanguageModel
from eval.needles.haystack import NOISE, sentences_of
from eval.needles.words import NOUNS
from eval.score import score
from eval.subject import Subject
from eval.windows import cut, offsets
from llm.errors import ConfigError

SECOND = ("same", "permuted", "new")
BEFORE, BETWEEN = "On a sheet of paper stood a list of words:", "Much later the list was read out once more:"


@dataclass(frozen=True)
class VerbatimConfig:
    """nouns: of a list. delays: tokens between the lists, beside the words that introduce the second. samples: lists of each delay
    and kind. lanes, window: rows and tokens of a batch; they change no figure.
    """

    nouns: int = 10
    delays: list[int] = field(default_factory=lambda: [0, 64, 256, 1024])
    samples: int = 30
    lanes: int = 8
    window: int = 1024
    seed: int = 0

    def check(self, positions: int | None) -> None:
        """Raises ConfigError. positions: what the model can read at most."""
        most = len(NOUNS) // 2
        if not 2 <= self.nouns <= most:
            raise ConfigError(f"nouns ({self.nouns}) must be at least 2, to have an order, and at most {most}")
        if not self.delays or min(self.delays) < 0:
            raise ConfigError(f"delays ({self.delays}) must be numbers of tokens, 0 or more each; write delays=[0,256]")
        for name in ("samples", "lanes", "window"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} ({getattr(self, name)}) must be at least 1")
        if positions is not None and max(self.delays) >= positions:
            raise ConfigError(f"delays ({max(self.delays)}) reach behind the model's {positions} positions; use less")


@dataclass(frozen=True)
class Read:
    """tokens of a document; where the lists stand in it."""

    tokens: np.ndarray
    first: slice
    second: slice


def verbatim(subject: Subject, config: VerbatimConfig) -> Result:
    """The ratio by delay and kind of second list. All ranks call it together. Raises ConfigError."""
    config.check(subject.model.positions)
    cells = [(delay, second) for delay in sorted(config.delays) for second in SECOND]
    drawn = [draw(subject.model, config, delay, second, k) for delay, second in cells for k in range(config.samples)]
    documents = [found.tokens for found in drawn]
    lengths = np.array([len(document) for document in documents])
    if subject.model.positions is not None and lengths.max() > subject.model.positions:
        raise ConfigError(f"delays ({max(config.delays)}) and lists reach behind {subject.model.positions} positions; use less")
    pieces = cut(lengths, "stream", config.window, config.window)
    nats = score(subject, documents, pieces, config.lanes, config.window).nats
    # a document's token t is scored at t - 1
    begins = offsets(lengths)[:-1] - 1
    lists = [(begin, part) for begin, of in zip(begins, drawn, strict=True) for part in (of.first, of.second)]
    sums = np.array([nats[begin + part.start : begin + part.stop].sum() for begin, part in lists]).reshape(-1, 2)
    figures, found = {}, []
    for i, (delay, second) in enumerate(cells):
        first_nats, second_nats = sums[i * config.samples : (i + 1) * config.samples].T
        value, error = ratio(second_nats, first_nats)
        figures[f"{second} after {delay} tokens"] = Figure(value, config.samples, error)
        means = {"first_nats": float(first_nats.mean()), "second_nats": float(second_nats.mean())}
        found.append({"delay": delay, "second": second, "ratio": value, "standard_error": error, **means})
    return Result(
        figures, {"cells": found}, f"nats of the second list over the first's; {config.nouns} nouns, {config.samples} lists"
    )


def draw(model: LanguageModel, config: VerbatimConfig, delay: int, second: str, k: int) -> Read:
    """Sample k: the same first list and the same new one whatever the delay and the second list."""
    rng = np.random.default_rng([config.seed, k])
    words = rng.permutation(NOUNS)
    first, new = words[: config.nouns], words[config.nouns : 2 * config.nouns]
    other = rng.permutation(first)
    while (other == first).all():
        other = rng.permutation(first)
    again = {"same": first, "permuted": other, "new": new}[second]
    between: list[int] = []
    while len(between) < delay:
        between += model.encode(" " + " ".join(sentences_of(NOISE, len(NOISE))))
    lists = [model.encode(f" {', '.join(x)}") for x in (first, again)]
    before = [model.opening, *model.encode(BEFORE)]
    until = [*before, *lists[0], *model.encode("."), *between[:delay], *model.encode(f" {BETWEEN}")]
    tokens = np.array([*until, *lists[1]], dtype=np.int32)
    return Read(tokens, slice(len(before), len(before) + len(lists[0])), slice(len(until), len(tokens)))


def draw_verbatim(figure: Any, results: dict[str, dict[str, Any]]) -> None:
    """The ratio against the delay, one panel per model. results: by model."""
    panels = figure.subplots(1, len(results), squeeze=False, sharey=True)[0]
    for axes, (name, details) in zip(panels, results.items(), strict=True):
        for second in SECOND:
            cells = [cell for cell in details["cells"] if cell["second"] == second]
            error = [cell["standard_error"] or 0.0 for cell in cells]
            axes.errorbar([c["delay"] for c in cells], [c["ratio"] for c in cells], error, marker=".", capsize=2, label=second)
        axes.set(xscale="symlog", xlabel="tokens between the lists", ylabel="nats of the second list / the first", title=name)
        axes.set_ylim(0, None)
        axes.grid(alpha=0.3)
        axes.legend()
