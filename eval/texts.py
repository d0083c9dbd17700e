"""The documents that a figure is about: which ones, in which order, how a limit cuts them, and what is counted in them."""

import hashlib
import re
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from eval.subject import Subject
from eval.text_files import FileText, read_files
from eval.wikitext import detokenized
from llm.data import Manifest, documents, load_tokenizer
from llm.errors import ConfigError, DataError

# WikiText's words, as published figures count them
SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class TextConfig:
    """Which text: `text`, a file or folder (a document per file, or per line of .jsonl, under the key `field`), or else `split` of
    `dataset`, a prepared one; null: the one that the model was trained on.

    detokenize: `wikitext` undoes that corpus' tokenisation before the model reads it; bytes and words are the original's.
    max_tokens, max_bytes: a limit, taken as the first documents of an order shuffled by `seed`.
    """

    text: str | None = None
    field: str = "text"
    dataset: str | None = None
    split: str = "validation"
    detokenize: Literal["none", "wikitext"] = "none"
    max_tokens: int | None = None
    max_bytes: int | None = None
    seed: int = 0

    def check(self) -> None:
        """Raises ConfigError."""
        for name in ("max_tokens", "max_bytes"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise ConfigError(f"{name} ({limit}) must be at least 1; leave it out to use all text")
        if self.seed < 0:
            raise ConfigError(f"seed ({self.seed}) must not be negative")
        if self.text is not None and self.dataset is not None:
            raise ConfigError(f"text ({self.text}) and dataset ({self.dataset}) are two texts; give one of them")


@dataclass(frozen=True)
class Texts:
    """Per document: its opening token and its text's, int32; its source; UTF-8 bytes and words of its text (words: None where the
    tokens do not spell the text). origin: what was read, for reports.
    """

    tokens: list[np.ndarray]
    sources: list[str]
    text_bytes: np.ndarray
    words: np.ndarray | None
    origin: dict[str, Any]

    @property
    def scored(self) -> np.ndarray:
        """Per document the tokens of its text: each is scored once. The end of a document is not."""
        return np.array([len(document) - 1 for document in self.tokens], dtype=np.int64)

    @property
    def counts(self) -> dict[str, int]:
        """What figures are taken over."""
        found = {"documents": len(self.tokens), "tokens": int(self.scored.sum()), "bytes": int(self.text_bytes.sum())}
        return found if self.words is None else found | {"words": int(self.words.sum())}

    @property
    def said(self) -> str:
        return ", ".join(f"{n:,} {name}" for name, n in self.counts.items())

    def some(self, kept: np.ndarray) -> "Texts":
        """The documents of these numbers."""
        words = None if self.words is None else self.words[kept]
        return replace(
            self,
            tokens=[self.tokens[k] for k in kept],
            sources=[self.sources[k] for k in kept],
            text_bytes=self.text_bytes[kept],
            words=words,
        )


def read_texts(subject: Subject, config: TextConfig) -> Texts:
    """The documents that `config` names, in the model's tokens. Raises ConfigError, DataError."""
    config.check()
    if config.text is not None:
        found = _encoded(subject, read_files(config.text, config.field), config, {"text": config.text})
        return _limited(found, config.text, config)
    manifest = subject.manifest(config.dataset)
    what = f"split {config.split!r} of {manifest.root}"
    origin = {"dataset": str(manifest.root), "manifest": manifest.hash, "split": config.split}
    if manifest.tokenizer.sha256 != subject.origin.get("tokenizer") or config.detokenize != "none":
        return _limited(_encoded(subject, _spelt(manifest, config.split), config, origin), what, config)
    held = list(documents(manifest, config.split))
    sizes = np.array([document.text_bytes for document in held], dtype=np.int64)
    stored = Texts([d.tokens.astype(np.int32) for d in held], [d.source for d in held], sizes, None, origin)
    return _with_words(manifest, _limited(stored, what, config))


def _limited(texts: Texts, what: str, config: TextConfig) -> Texts:
    """The first documents of the shuffled order that stay within the limits, at least one; in their stored order.

    Raises DataError when none of them holds text to score.
    """
    if not texts.text_bytes.sum() or not texts.scored.sum():
        raise DataError(f"{what} holds no text to score; use another split or file, or more text")
    if config.max_tokens is None and config.max_bytes is None:
        return texts
    order = np.random.default_rng(config.seed).permutation(len(texts.tokens))
    tokens, sizes = texts.scored[order].cumsum(), texts.text_bytes[order].cumsum()
    within = (tokens <= (config.max_tokens or np.inf)) & (sizes <= (config.max_bytes or np.inf))
    # a document without tokens in front would leave nothing to score
    first = int((tokens > 0).argmax()) + 1
    return texts.some(np.sort(order[: max(first, int(within.sum()))]))


def _with_words(manifest: Manifest, texts: Texts) -> Texts:
    """With words counted in the decoded tokens, where decoding gives as many bytes as each text had."""
    decoded = _decoded(manifest, [tokens[1:] for tokens in texts.tokens])
    if any(len(text.encode()) != size for text, size in zip(decoded, texts.text_bytes, strict=True)):
        return texts
    return replace(texts, words=np.array([count_words(text) for text in decoded], dtype=np.int64))


def _spelt(manifest: Manifest, split: str) -> list[FileText]:
    """A dataset's text, for a model with another tokenizer."""
    found = list(documents(manifest, split))
    texts = _decoded(manifest, [document.tokens[1:] for document in found])
    for document, text in zip(found, texts, strict=True):
        if len(text.encode()) != document.text_bytes:
            raise DataError(
                f"{manifest.root} has another tokenizer than the model, and its tokens do not spell its text "
                f"({len(text.encode())} bytes for {document.text_bytes}); give the text itself with text=PATH"
            )
    return [FileText(text, document.source) for text, document in zip(texts, found, strict=True)]


def _decoded(manifest: Manifest, documents: list[np.ndarray]) -> list[str]:
    return load_tokenizer(manifest.tokenizer_path).decode_batch([x.tolist() for x in documents], skip_special_tokens=False)


def _encoded(subject: Subject, texts: list[FileText], config: TextConfig, origin: dict[str, Any]) -> Texts:
    model, hasher = subject.model, hashlib.sha256()
    tokens = []
    for found in texts:
        hasher.update(found.text.encode() + b"\0")
        read = detokenized(found.text) if config.detokenize == "wikitext" else found.text
        tokens.append(np.array([model.opening, *model.encode(read)], dtype=np.int32))
    sizes = np.array([len(found.text.encode()) for found in texts], dtype=np.int64)
    words = np.array([count_words(found.text) for found in texts], dtype=np.int64)
    return Texts(tokens, [found.source for found in texts], sizes, words, {**origin, "sha256": hasher.hexdigest()})


def count_words(text: str) -> int:
    """Pieces between white space; as in published WikiText figures, space at either end opens an empty one."""
    return len(SPACE.split(text))
