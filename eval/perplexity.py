"""Perplexity of a trained model on held-out documents.

The rule: a document is `<|endoftext|>` and the tokens of its text. Each token of the text is scored once, given all before it in
its document (or, without carrying, in its window); the end of a document is not scored; nothing crosses from one document to
another. Bytes are the UTF-8 bytes of the text.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.figures import figures
from eval.held_out import HeldOut, held_out
from eval.lanes import document_nats, lay
from eval.subject import Subject
from llm.errors import ConfigError

# logits held at once, in values
LOGITS = 1 << 25


@dataclass(frozen=True)
class PerplexityConfig:
    """split: of the run's dataset. carry: hand the state on from window to window; otherwise each window starts fresh.

    window: tokens; None is the training length. lanes: documents at once, which changes no figure. max_tokens, max_bytes: a limit,
    taken as the first documents of an order shuffled by `seed`.
    """

    split: str = "validation"
    carry: bool = True
    window: int | None = None
    lanes: int = 16
    max_tokens: int | None = None
    max_bytes: int | None = None
    seed: int = 0

    def check(self) -> None:
        """Raises ConfigError."""
        if self.lanes < 1:
            raise ConfigError(f"lanes ({self.lanes}) must be at least 1")
        if self.window is not None and self.window < 1:
            raise ConfigError(f"window ({self.window}) must be at least 1; leave it out for the training length")


def perplexity(subject: Subject, config: PerplexityConfig) -> dict[str, Any]:
    """nats per token, token perplexity and bits per byte, with standard errors and counts. Raises ConfigError, DataError."""
    config.check()
    texts = held_out(subject.manifest, config.split, config.max_tokens, config.max_bytes, config.seed)
    window = config.window or subject.data.sequence_length
    nats = score(subject, texts, config.lanes, window, config.carry)
    return {**figures(nats, texts.scored, texts.text_bytes, config.seed), **counts(texts), "window": window}


def score(subject: Subject, texts: HeldOut, lanes: int, window: int, carry: bool) -> np.ndarray:
    """nats of each document's text, float64."""
    laid = lay(texts.tokens, lanes, None if carry else window)
    per_batch = max(1, min(window, LOGITS // (len(laid) * subject.model.config.vocab_size)))
    nats = np.zeros(len(texts.tokens))
    with subject.progress("perplexity", int(texts.scored.sum())) as advance:
        for scored, so_far in document_nats(subject.model, laid, len(texts.tokens), per_batch):
            advance(scored)
            nats = so_far
    return nats


def counts(texts: HeldOut) -> dict[str, int]:
    """What the figures are taken over."""
    return {"tokens": int(texts.scored.sum()), "bytes": int(texts.text_bytes.sum()), "documents": len(texts.tokens)}
