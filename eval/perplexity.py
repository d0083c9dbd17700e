"""Perplexity of a language model on text.

A document is the model's opening token and the tokens of its text. Each token of the text is scored once, given what `rule` lets
the model read before it in its document (eval/windows.py); the end of a document is not scored; nothing crosses from one document
to another. Bytes are the UTF-8 bytes of the text, words its pieces between white space.
"""

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from eval.curves import curve
from eval.figures import Result, text_figures
from eval.score import score
from eval.subject import Subject
from eval.texts import TextConfig, Texts, read_texts
from eval.windows import Rule, contexts, cut, offsets, positions
from llm.errors import ConfigError

# where neither the model nor the settings say how long a window is
WINDOW = 1024


@dataclass(frozen=True)
class PerplexityConfig(TextConfig):
    """rule: `stream`, `window` or `harness` (eval/windows.py). window: tokens read afresh at once; with `stream`, tokens per batch,
    which changes no figure; null: those of a training sequence. stride: of `window`; null: the window. lanes: rows of a batch.
    """

    rule: Rule = "stream"
    window: int | None = None
    stride: int | None = None
    lanes: int = 16

    def check(self) -> None:
        """Raises ConfigError."""
        super().check()
        if self.lanes < 1:
            raise ConfigError(f"lanes ({self.lanes}) must be at least 1")
        if self.window is not None and self.window < 1:
            raise ConfigError(f"window ({self.window}) must be at least 1; leave it out for the training length")
        if self.stride is not None and self.rule != "window":
            raise ConfigError(f"stride ({self.stride}) has no effect with rule={self.rule}; remove it, or use rule=window")


def perplexity(subject: Subject, config: PerplexityConfig) -> Result:
    """Figures with standard errors; curves by position and context; figures by source. Raises ConfigError, DataError."""
    config.check()
    texts = subject.agreed(lambda: read_texts(subject, config))
    window = config.window or subject.model.window or WINDOW
    stride = config.stride or window
    if not 1 <= stride <= window:
        raise ConfigError(f"stride ({stride}) must be between 1 and the window ({window}), so that every token is scored once")
    lengths = np.array([len(document) for document in texts.tokens])
    pieces = cut(lengths, config.rule, window, stride)
    check_positions(subject, max(piece.inputs for piece in pieces), config.rule)
    nats = score(subject, texts.tokens, pieces, config.lanes, window).nats
    begins = offsets(lengths)
    of_documents = np.array([nats[a:b].sum() for a, b in pairwise(begins)])
    context = contexts(pieces, lengths)
    details = {
        "rule": {"name": config.rule, "window": window, "stride": stride if config.rule == "window" else None},
        "text": {**texts.origin, **texts.counts},
        "tokens_read": sum(piece.inputs for piece in pieces),
        "mean_context": float(context.mean()),
        "by_position": curve(nats, positions(lengths), texts.scored),
        "by_context": curve(nats, context, texts.scored),
        "by_source": by_source(texts, of_documents, config.seed),
    }
    figures = text_figures(of_documents, texts.scored, texts.text_bytes, texts.words, config.seed)
    by_windows = "" if config.rule == "stream" else f", {window} tokens, stride {stride}"
    return Result(figures, details, f"rule {config.rule}{by_windows}; {texts.said}; documents' ends are not scored")


def check_positions(subject: Subject, tokens: int, rule: str) -> None:
    """Raise ConfigError where the model cannot read so many tokens in a row."""
    if subject.model.positions is not None and tokens > subject.model.positions:
        raise ConfigError(
            f"rule ({rule}) makes {subject.name} read {tokens} tokens in a row, and it has {subject.model.positions} positions; "
            f"use rule=window or rule=harness with window={subject.model.positions} or less"
        )


def by_source(texts: Texts, nats: np.ndarray, seed: int) -> dict[str, Any]:
    """Counts and figures of each source that holds text to score."""
    sources, found = np.array(texts.sources), {}
    for name in sorted(set(texts.sources)):
        some = np.flatnonzero(sources == name)
        part = texts.some(some)
        if part.scored.sum() and part.text_bytes.sum():
            figures = text_figures(nats[some], part.scored, part.text_bytes, part.words, seed)
            found[name] = {**part.counts, **{key: asdict(figure) for key, figure in figures.items()}}
    return found
