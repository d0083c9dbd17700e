"""The held-out documents that a figure is about: which ones, in which order, and how a limit cuts them."""

from dataclasses import dataclass

import numpy as np

from llm.data import Manifest, documents
from llm.errors import ConfigError, DataError


@dataclass(frozen=True)
class HeldOut:
    """tokens: per document its opening token and its text's, int32. text_bytes: UTF-8 bytes of each document's text."""

    tokens: list[np.ndarray]
    text_bytes: np.ndarray

    @property
    def scored(self) -> np.ndarray:
        """Per document the tokens of its text: each is scored once. The end of a document is not."""
        return np.array([len(document) - 1 for document in self.tokens], dtype=np.int64)


def held_out(manifest: Manifest, split: str, max_tokens: int | None, max_bytes: int | None, seed: int) -> HeldOut:
    """The documents of a split; under a limit, the first ones of an order shuffled by `seed` that stay within it, at least one.

    Raises:
        ConfigError: a limit below 1. DataError: an empty split, or documents without text.
    """
    for name, limit in (("max_tokens", max_tokens), ("max_bytes", max_bytes)):
        if limit is not None and limit < 1:
            raise ConfigError(f"{name} ({limit}) must be at least 1; leave it out to use the whole split")
    if seed < 0:
        raise ConfigError(f"seed ({seed}) must not be negative")
    found = [(document.tokens.astype(np.int32), document.text_bytes) for document in documents(manifest, split)]
    tokens, sizes = [t for t, _ in found], np.array([size for _, size in found], dtype=np.int64)
    if max_tokens is not None or max_bytes is not None:
        order = np.random.default_rng(seed).permutation(len(tokens))
        lengths = np.array([len(t) - 1 for t in tokens])[order]
        within = (lengths.cumsum() <= (max_tokens or np.inf)) & (sizes[order].cumsum() <= (max_bytes or np.inf))
        kept = np.sort(order[: max(1, int(within.sum()))])
        tokens, sizes = [tokens[k] for k in kept], sizes[kept]
    if not sizes.sum() or not sum(len(t) - 1 for t in tokens):
        raise DataError(f"split {split!r} of {manifest.root} holds no text to score; use another split or prepare more text")
    return HeldOut(tokens, sizes)
