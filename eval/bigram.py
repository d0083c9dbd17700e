"""The baseline every trained model must beat: a smoothed bigram model of the same tokens.

Interpolated absolute discounting (Ney, Essen and Kneser 1994; Chen and Goodman 1999, eq. 18), backing off to the add-one unigram:

    P(w | v) = max(c(v, w) - D, 0) / c(v) + D N(v) / c(v) P(w)      P(w) = (c(w) + 1) / (c + Z)      D = n1 / (n1 + 2 n2)

c(v, w): how often w followed v; N(v): different followers of v; n1, n2: pairs seen once, twice; P(w) alone where v was never seen.
The pairs are the inputs and labels of the training sequences, phase by phase, so the model and its baseline have read the same.
What later epochs of a source repeat is counted once; but again in a phase that cuts sequences anew, whose epochs are its own.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from eval.figures import Result, text_figures
from eval.subject import Subject, Trained
from eval.texts import TextConfig, read_texts
from llm.data import TokenStream
from llm.errors import ConfigError
from llm.train.config import naming
from llm.train.phases import stream_of
from llm.train.quarantine import quarantine_of

# training pairs counted at a time
PAIRS = 1 << 22
ROWS = 1024


@dataclass(frozen=True)
class Bigram:
    """Counts. keys: sorted v * Z + w of the pairs seen. counts: of each. context_Z: c(v). followers_Z: N(v). unigram_Z: P(w)."""

    keys: np.ndarray
    counts: np.ndarray
    context_Z: np.ndarray
    followers_Z: np.ndarray
    unigram_Z: np.ndarray
    discount: float

    def probability(self, context: np.ndarray, token: np.ndarray) -> np.ndarray:
        """P(token | context), elementwise."""
        keys = context.astype(np.int64) * len(self.unigram_Z) + token
        at = np.searchsorted(self.keys, keys)
        at[at == len(self.keys)] = 0
        pair = np.where(self.keys[at] == keys, self.counts[at], 0)
        seen = self.context_Z[context]
        safe = np.maximum(seen, 1)
        backoff = np.where(seen > 0, self.discount * self.followers_Z[context] / safe, 1.0)
        return np.maximum(pair - self.discount, 0) / safe + backoff * self.unigram_Z[token]

    def document_nats(self, documents: list[np.ndarray]) -> np.ndarray:
        """-sum log P over each document's text, its opening token being the first context."""
        return np.array([-np.log(self.probability(d[:-1], d[1:])).sum() for d in documents])


def fit(rows: Iterable[tuple[np.ndarray, np.ndarray]], vocab_size: int) -> Bigram:
    """From tokens and their labels, `[n, T]`, the label negative where none is scored: each token and its label is a pair."""
    keys, counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
    pending: list[np.ndarray] = []
    waiting = 0
    for tokens, labels in rows:
        new = (tokens.astype(np.int64) * vocab_size + labels)[labels >= 0]
        pending.append(new)
        waiting += len(new)
        if waiting >= PAIRS:
            keys, counts = _merged(keys, counts, pending)
            pending, waiting = [], 0
    return _from_counts(*_merged(keys, counts, pending), vocab_size)


def _merged(keys: np.ndarray, counts: np.ndarray, pending: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    new_keys, new_counts = np.unique(np.concatenate([np.zeros(0, np.int64), *pending]), return_counts=True)
    merged, place = np.unique(np.concatenate([keys, new_keys]), return_inverse=True)
    total = np.zeros(len(merged), np.int64)
    np.add.at(total, place, np.concatenate([counts, new_counts]))
    return merged, total


def _from_counts(keys: np.ndarray, counts: np.ndarray, Z: int) -> Bigram:
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    # no pair seen once: the formula says 0, which would forbid every unseen pair
    discount = once / (once + 2 * twice) if once else 0.5
    label = np.bincount(keys % Z, weights=counts, minlength=Z)
    context = np.bincount(keys // Z, weights=counts, minlength=Z)
    return Bigram(keys, counts, context, np.bincount(keys // Z, minlength=Z), (label + 1) / (label.sum() + Z), discount)


@dataclass(frozen=True)
class BigramConfig(TextConfig):
    """train: the split to count in. sequences: the first so many training sequences of the run's order; null: those that the model
    was trained on.
    """

    train: str = "train"
    sequences: int | None = None


def bigram(subject: Subject, config: BigramConfig) -> Result:
    """The figures of `perplexity`, on the same text, of a bigram model of the tokens trained on. Raises ConfigError, DataError."""
    trained = subject.trained
    if trained is None:
        raise ConfigError(f"bigram counts what a run was trained on, which {subject.name} does not say; evaluate the run itself")
    texts = read_texts(subject, config)
    read = read_in_training(subject, trained, config)
    once = [(stream, distinct(stream, rows)) for stream, rows in read]
    number, of = (sum(len(rows) for _, rows in parts) for parts in (once, read))
    if of < 1:
        raise ConfigError(f"sequences ({of}) to count bigrams in must be at least 1; train the run first, or set sequences=N")
    with subject.progress("bigrams", number) as advance:
        model = fit((part for stream, rows in once for part in _rows(stream, rows, advance)), subject.model.vocab_size)
    nats = model.document_nats(texts.tokens)
    found = text_figures(nats, texts.scored, texts.text_bytes, texts.words, config.seed)
    fitted = {"sequences": number, "of": of, "pairs": int(model.counts.sum()), "discount": model.discount}
    return Result(found, {"text": {**texts.origin, **texts.counts}, "fitted_on": fitted}, texts.said)


def read_in_training(subject: Subject, trained: Trained, config: BigramConfig) -> list[tuple[TokenStream, np.ndarray]]:
    """Of each phase its stream, and the rows of it that were read: all of them, or the first `config.sequences` of the run's order,
    also of those that lie ahead. Raises DataError where a phase's dataset is not at hand, ConfigError.
    """
    found: list[tuple[TokenStream, np.ndarray]] = []
    left = config.sequences
    for k, (low, high) in enumerate(pairwise((*trained.began, trained.consumed))):
        with naming(k) if len(trained.began) > 1 else nullcontext():
            manifest = subject.of_run(trained.phases[k].config.data)
            stream = stream_of(trained.phases, k, manifest, trained.began, config.train)
        quarantine = quarantine_of(trained.quarantine, stream.identity())
        first, count = quarantine.read_before(low), quarantine.read_before(high) - quarantine.read_before(low)
        if left is not None:
            count = left if k + 1 == len(trained.began) else min(left, count)
            left -= count
        found.append((stream, quarantine.rows(first + np.arange(count))))
    return found


def distinct(stream: TokenStream, indices: np.ndarray) -> np.ndarray:
    """Those that are of a source's first epoch: what a second one repeats is counted once."""
    return indices[stream.epochs(indices) == 0]


def _rows(stream: TokenStream, indices: np.ndarray, advance: Callable[[int], None]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for first in range(0, len(indices), ROWS):
        part = indices[first : first + ROWS]
        rows = stream.rows(part)
        yield rows.tokens, rows.labels
        advance(len(part))
