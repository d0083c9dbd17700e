"""What a tokenizer does to text: how many tokens it takes, what it never uses, and whether the text comes back.

Several tokenizers are measured on the same texts, side by side, in one pass and constant memory.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from data_prep.encoder import Encoder
from data_prep.token_bytes import byte_lengths
from llm.data.tokenizer import parse_tokenizer
from llm.errors import DataError

BATCH, SAMPLES, LONGEST = 64, 3, 10


@dataclass
class Counts:
    """Sums over the texts of one source. words: between white space. single_bytes: tokens of one byte.

    failures: texts that do not come back from their ids, with samples of the first places.
    """

    texts: int = 0
    bytes: int = 0
    characters: int = 0
    words: int = 0
    tokens: int = 0
    single_bytes: int = 0
    failures: int = 0
    samples: list[str] = field(default_factory=list)

    def ratios(self) -> dict[str, float]:
        tokens = max(1, self.tokens)
        return {
            "tokens_per_word": self.tokens / max(1, self.words),
            "bytes_per_token": self.bytes / tokens,
            "characters_per_token": self.characters / tokens,
            "single_byte_share": self.single_bytes / tokens,
        }


class _Measure:
    """One tokenizer at work."""

    def __init__(self, content: bytes):
        self.encoder = Encoder(content)
        self._tokenizer = parse_tokenizer(content)
        self._lengths = byte_lengths(content)
        self._special = {token["id"] for token in json.loads(self._tokenizer.to_str())["added_tokens"] if token["special"]}
        self._used = np.zeros(len(self._lengths), dtype=np.int64)
        self.sources: dict[str, Counts] = {}

    def add(self, source: str, texts: list[str]) -> None:
        counts = self.sources.setdefault(source, Counts())
        encoded = self.encoder.encode(texts)
        ids = np.array([id for text in encoded for id in text], dtype=np.int64)
        self._used += np.bincount(ids, minlength=len(self._used))
        counts.tokens += len(ids)
        counts.single_bytes += int((self._lengths[ids] == 1).sum())
        for text, back in zip(texts, self._tokenizer.decode_batch(encoded, skip_special_tokens=False), strict=True):
            counts.texts += 1
            counts.bytes += len(text.encode())
            counts.characters += len(text)
            counts.words += len(text.split())
            if back != text:
                counts.failures += 1
                if len(counts.samples) < SAMPLES:
                    counts.samples.append(_difference(text, back))

    def result(self) -> dict[str, Any]:
        words = [id for id in self._tokenizer.get_vocab().values() if id not in self._special]
        used = self._used[words] > 0
        longest = sorted(words, key=lambda id: (-self._lengths[id], id))[:LONGEST]
        return {
            "encoder": self.encoder.name,
            "why": self.encoder.why,
            "vocabulary": len(words) + len(self._special),
            "special": len(self._special),
            "used": int(used.sum()),
            "unused": int((~used).sum()),
            "longest": [
                {"text": self._tokenizer.decode([id]), "bytes": int(self._lengths[id]), "count": int(self._used[id])}
                for id in longest
            ],
            "sources": {name: asdict(counts) | counts.ratios() for name, counts in self.sources.items()},
        }


def tokenizer_report(tokenizers: Mapping[str, bytes], texts: Mapping[str, Iterable[str]]) -> dict[str, dict[str, Any]]:
    """By tokenizer's name: what it does to the texts, by source.

    Args:
        tokenizers: contents of tokenizer.json. texts: streams by source, each read once.

    Returns:
        JSON-ready. A tokenizer that makes special ids from text has only the entry "refused", the reason.

    Raises:
        DataError: content that is no tokenizer.
    """
    measures: dict[str, _Measure] = {}
    refused = {}
    for name, content in tokenizers.items():
        parse_tokenizer(content, name)
        try:
            measures[name] = _Measure(content)
        except DataError as reason:
            refused[name] = {"refused": str(reason)}
    for source, stream in texts.items():
        for batch in _batches(stream):
            for measure in measures.values():
                measure.add(source, batch)
    return {name: refused.get(name) or measures[name].result() for name in tokenizers}


def markdown(report: Mapping[str, Mapping[str, Any]]) -> str:
    """The report for people."""
    measured = {name: entry for name, entry in report.items() if "refused" not in entry}
    sources = dict.fromkeys(source for entry in measured.values() for source in entry["sources"])
    texts = [_text_cells(source, name, entry["sources"][source]) for source in sources for name, entry in measured.items()]
    vocabulary = [
        [name, *(f"{entry[key]:,}" for key in ("vocabulary", "special", "used", "unused")), entry["encoder"]]
        for name, entry in measured.items()
    ]
    head = "source,tokenizer,texts,bytes,tokens,tokens/word,bytes/token,characters/token,single bytes,do not come back"
    lines = ["## Tokens", "", *_table(head.split(","), texts), "## Vocabulary", ""]
    lines += _table("tokenizer,vocabulary,special,used,unused,encoded by".split(","), vocabulary)
    for name, entry in measured.items():
        longest = (f"{_quoted(token['text'])} ({token['bytes']} bytes, {token['count']:,} times)" for token in entry["longest"])
        lines += [f"- {name}: encoded by {entry['encoder']}, {entry['why']}", f"- {name}, longest tokens: {', '.join(longest)}"]
        for source, counts in entry["sources"].items():
            lines += [f"- {name}, {source}, does not come back: {sample}" for sample in counts["samples"]]
    lines += [f"- {name} is refused: {entry['refused']}" for name, entry in report.items() if "refused" in entry]
    return "\n".join(lines) + "\n"


def _text_cells(source: str, name: str, counts: Mapping[str, Any]) -> list[str]:
    sums = [f"{counts[key]:,}" for key in ("texts", "bytes", "tokens")]
    ratios = [f"{counts[key]:.3f}" for key in ("tokens_per_word", "bytes_per_token", "characters_per_token")]
    return [source, name, *sums, *ratios, f"{counts['single_byte_share']:.2%}", f"{counts['failures']:,}"]


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    iterator = iter(texts)
    while batch := list(islice(iterator, BATCH)):
        yield batch


def _difference(text: str, back: str) -> str:
    at = next((k for k, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), min(len(text), len(back)))
    around = slice(max(0, at - 10), at + 20)
    return f"{_quoted(text[around])} became {_quoted(back[around])} at character {at}"


def _quoted(text: str) -> str:
    # one line, and nothing that would end a table's cell
    return f"`{text[:60]!a}`".replace("|", "\\|")


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [*(f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)), ""]
