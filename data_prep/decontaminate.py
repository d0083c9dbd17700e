"""Documents that hold text of evaluation files, by shared word n-grams: 13 words, as for GPT-3 (Brown et al. 2020, appendix C).

Words are normalised as for deduplication (`words.py`). The n-grams of the evaluation files are held as 64-bit hashes, 16 bytes
each; of the corpus only the document at hand is in memory. GPT-3 cuts a match out of its document with 200 characters on either
side, and takes n-grams that more than ten documents hold for common phrases; here, as in datatrove 0.10.1
(`pipeline/decont/n_grams.py`), the document goes, and `min_matches` is what tells a phrase from a test. N-grams of one word over
and over are no evidence, and not taken: a row of 13 numbers, which all become 0, would match every table.
"""

import heapq
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from data_prep.signatures import Document
from data_prep.words import hash_ngrams, normalise
from llm.errors import ConfigError, DataError

EXAMPLES = 5


@dataclass(frozen=True)
class DecontaminationConfig:
    """files: .txt, one text each, and .jsonl, one record a line. fields: of the records, each a string or a list of strings, joined
    in this order, so that n-grams across a question and its answer count. words: of an n-gram. min_matches: different n-grams that
    a document shares with one file before it counts. drop: false only reports.
    """

    files: list[str] = field(default_factory=list)
    fields: list[str] = field(default_factory=lambda: ["text"])
    words: int = 13
    min_matches: int = 1
    drop: bool = True

    def check(self, where: str = "decontamination") -> None:
        """Raises ConfigError."""
        if not self.files:
            raise ConfigError(f"{where}.files (none) must name evaluation files; leave out {where}, or list .txt and .jsonl files")
        for name in self.files:
            if Path(name).suffix not in READERS:
                raise ConfigError(f"{where}.files ({name}) must end in {' or '.join(READERS)}; convert it")
            if self.files.count(name) > 1:
                raise ConfigError(f"{where}.files ({name}) must not name a file twice; remove one")
        if not self.fields and any(Path(name).suffix == ".jsonl" for name in self.files):
            raise ConfigError(f"{where}.fields (none) must name the texts of a record; list fields such as [question, answer]")
        for name in ("words", "min_matches"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{where}.{name} ({getattr(self, name)}) must be at least 1")


def _read_text(path: Path, fields: list[str]) -> Iterator[str]:
    yield _decode(path, path.read_bytes())


def _read_records(path: Path, fields: list[str]) -> Iterator[str]:
    with path.open("rb") as file:
        for k, line in enumerate(file, start=1):
            if line.strip():
                yield "\n".join(_texts(path, k, line, fields))


def _texts(path: Path, k: int, line: bytes, fields: list[str]) -> list[str]:
    try:
        record = json.loads(_decode(path, line))
    except (ValueError, RecursionError) as error:
        raise DataError(f"evaluation file {path}, line {k} is no JSON ({error}); mend it, or leave the file out") from None
    found: list[str] = []
    for name in fields:
        value: Any = record.get(name) if isinstance(record, dict) else None
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(v, str) for v in values):
            law = f"has no text in the field {name!r}"
            raise DataError(f"evaluation file {path}, line {k} {law}; name other fields, or leave the file out")
        found += values
    return found


def _decode(path: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"evaluation file {path} is not UTF-8; convert it, or leave it out") from None


READERS = {".txt": _read_text, ".jsonl": _read_records}


class Match(NamedTuple):
    """What a document shares with an evaluation file. ngrams: how many different ones. example: the words of the first."""

    file: str
    ngrams: int
    example: str


@dataclass
class FileReport:
    """texts, too_short: of the evaluation file, all and those without an n-gram, which cannot be found. ngrams: different ones.
    matched: documents with a match, by source. examples: those of the lowest ids, with the n-gram.
    """

    texts: int = 0
    too_short: int = 0
    ngrams: int = 0
    matched: dict[str, int] = field(default_factory=dict)
    examples: list[tuple[str, str]] = field(default_factory=list)

    def count(self, document: Document, match: Match) -> None:
        self.matched[document.source] = self.matched.get(document.source, 0) + 1
        self._hold([(document.id, match.example)])

    def merge(self, other: "FileReport") -> None:
        """Add the matches that are counted elsewhere, such as in another process."""
        for source, count in other.matched.items():
            self.matched[source] = self.matched.get(source, 0) + count
        self._hold([(id, example) for id, example in other.examples])

    def _hold(self, more: list[tuple[str, str]]) -> None:
        self.examples = heapq.nsmallest(EXAMPLES, [*self.examples, *more])


class Evaluations:
    """The n-grams of the evaluation files; the same in every process that loads the same files.

    Raises:
        ConfigError: a setting out of bounds.
        DataError: a file that is missing or unreadable, or in which no text is long enough to be found.
    """

    def __init__(self, config: DecontaminationConfig):
        config.check()
        self.config = config
        self.reports: dict[str, FileReport] = {}
        self._hashes = {name: self._load(name) for name in config.files}
        self._all = np.unique(np.concatenate(list(self._hashes.values())))

    def _load(self, name: str) -> np.ndarray:
        report = self.reports[name] = FileReport()
        found = [np.empty(0, dtype=np.uint64)]
        try:
            for text in READERS[Path(name).suffix](Path(name), self.config.fields):
                found.append(_known(normalise(text), self.config.words))
                report.texts += 1
                report.too_short += not len(found[-1])
        except OSError as error:
            raise DataError(f"evaluation file {name} cannot be read ({error.strerror}); correct its path") from None
        hashes = np.unique(np.concatenate(found))
        report.ngrams = len(hashes)
        if not report.ngrams:
            raise DataError(f"evaluation file {name} has no text of {self.config.words} words; use fewer words, or leave it out")
        return hashes

    def matches(self, text: str) -> list[Match]:
        """What the text shares with each file, where that is at least `min_matches` n-grams. Changes nothing."""
        normal = normalise(text)
        hashes, _ = hash_ngrams([normal], self.config.words)
        hits = np.flatnonzero(_in_sorted(hashes, self._all))
        if not len(hits):
            return []
        found = []
        for name, known in self._hashes.items():
            shared = hits[_in_sorted(hashes[hits], known)]
            different = len(np.unique(hashes[shared]))
            if different >= self.config.min_matches:
                example = normal.split()[shared[0] : shared[0] + self.config.words]
                found.append(Match(name, different, b" ".join(example).decode(errors="surrogatepass")))
        return found

    def count(self, document: Document, matches: list[Match]) -> None:
        """Enter a document's matches into the reports."""
        for match in matches:
            self.reports[match.file].count(document, match)

    def kept(self, documents: Iterable[Document]) -> Iterator[Document]:
        """The documents without a match, or all of them where the config says not to drop; counts both ways."""
        for document in documents:
            matches = self.matches(document.text)
            self.count(document, matches)
            if not (matches and self.config.drop):
                yield document

    def to_json(self) -> str:
        """The same characters for the same set of documents."""
        content = {name: asdict(report) for name, report in self.reports.items()}
        return json.dumps(content, indent=1, sort_keys=True)


def _known(normal: bytes, n: int) -> np.ndarray:
    """The sorted hashes of a text's n-grams but for those of one word over and over."""
    hashes = np.unique(hash_ngrams([normal], n)[0])
    if n == 1:
        return hashes
    return np.setdiff1d(hashes, hash_ngrams([b" ".join([word] * n) for word in set(normal.split())], n)[0])


def _in_sorted(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which values are among the sorted `known`, of which there is at least one."""
    return known[np.minimum(np.searchsorted(known, values), len(known) - 1)] == values
