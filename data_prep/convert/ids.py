"""Documents that come as ids: where a document begins and ends, and whose ids they are."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import xxhash

from data_prep.place import check_name
from llm.data.manifest import TokenizerInfo
from llm.errors import ConfigError, DataError

KEPT, EMPTY, CUT = "kept", "empty", "cut at a document token inside"
TRAIN, VALIDATION = "train", "validation"
Counts = Counter[str]


@dataclass(frozen=True)
class ConvertConfig:
    """mark: the id at the end or start of foreign documents; -1 is the tokenizer's document token. It is taken off.

    inside: a document with a mark in its midst, which would be a false boundary, is refused (`refuse`) or cut there (`split`).
    validation: share of documents held out, by the hash of their ids, or of their text where it is encoded here.
    """

    source: str = "converted"
    licence: str = "unknown"
    weight: float = 1.0
    mark: int = -1
    inside: Literal["refuse", "split"] = "refuse"
    validation: float = 0.005
    shard_tokens: int = 1 << 26

    def check(self) -> None:
        """Raises ConfigError."""
        if not 0 <= self.validation < 1:
            raise ConfigError(f"validation ({self.validation}) is the share of documents held out; use a number in [0, 1)")
        if self.shard_tokens < 1:
            raise ConfigError(f"shard_tokens ({self.shard_tokens}) must be positive; use {1 << 26}")
        if not 0 <= self.weight < math.inf:
            raise ConfigError(f"weight ({self.weight}) must not be negative or infinite; use 1")
        check_name(self.source, f"source ({self.source})")
        if self.inside not in ("refuse", "split"):
            raise ConfigError(f"inside ({self.inside}) is unknown; use refuse or split")

    def split(self, content: bytes) -> str:
        """By the content alone: a document never changes sides when others come or go, and its copies go with it."""
        return VALIDATION if xxhash.xxh3_64_intdigest(content) < self.validation * 2**64 else TRAIN


class Cutter:
    """Takes marks off and checks ids. counts: what became of the documents."""

    def __init__(self, tokenizer: TokenizerInfo, config: ConvertConfig):
        config.check()
        self._vocabulary, self._config = tokenizer.vocabulary, config
        self._marks = sorted({tokenizer.document_token, tokenizer.document_token if config.mark < 0 else config.mark})
        if self._marks[-1] >= self._vocabulary:
            raise ConfigError(
                f"document token {self._marks[-1]} must be an id of the tokenizer, below {self._vocabulary}; name another"
            )
        self.counts: Counts = Counter()

    def __call__(self, place: str, ids: np.ndarray) -> Iterator[tuple[int, np.ndarray, str]]:
        """(where in `ids` it begins, its ids, its split) of each document without marks. Raises DataError naming the place."""
        if len(ids) and not 0 <= ids.min() <= ids.max() < self._vocabulary:
            bad = int(ids.max()) if ids.max() >= self._vocabulary else int(ids.min())
            raise DataError(
                f"{place}: id {bad} is not the tokenizer's, whose ids are below {self._vocabulary}; give the files' own tokenizer"
            )
        text = np.flatnonzero(np.logical_and.reduce([ids != mark for mark in self._marks]))
        # runs of ids between marks
        runs = np.split(text, np.flatnonzero(np.diff(text) > 1) + 1) if len(text) else []
        if len(runs) > 1:
            self._check_inside(place, ids, int(runs[0][-1]) + 1)
        self.counts[EMPTY] += not runs
        for run in runs:
            document = ids[run[0] : run[-1] + 1]
            self.counts[KEPT] += 1
            yield int(run[0]), document, self._config.split(document.astype("<u4").tobytes())

    def check_any(self) -> None:
        """Raises DataError when there was no document at all."""
        if not self.counts[KEPT]:
            raise DataError(f"files hold no document ({self.counts[EMPTY]} empty ones); name files that hold ids")

    def _check_inside(self, place: str, ids: np.ndarray, at: int) -> None:
        if self._config.inside == "refuse":
            raise DataError(
                f"{place}: id {ids[at]} at {at} marks a boundary inside of a document; add --inside split to cut it there, "
                "or name the right --document-token"
            )
        self.counts[CUT] += 1
