"""The rules of MassiveText (Rae et al. 2021, Gopher, arXiv:2112.11446, appendix A.1.1): quality, and repetition (table A1).

What the paper leaves open is as in datatrove 0.10.1 (`gopher_quality_filter.py`, `gopher_repetition_filter.py`), with which every
rule agrees given the same words:
- words that are punctuation alone count in no length or number of words, but in the ratios of symbols and of letters;
- a top n-gram's characters include the spaces between its words, those of duplicate n-grams don't; a top n-gram may occur once;
- duplicates are found from left to right, without overlap; the first occurrence is none;
- stop words count as spelled, in lower case.
Differences: a text without any word fails by `gopher_few_words` where datatrove divides by zero, and with that rule off passes;
words (`view.py`); duplicate n-grams are compared word by word, by 64-bit hashes, so `ab c` is not `a bc`.

The rules are made for languages with spaces between words.
"""

from collections import Counter
from dataclasses import dataclass
from functools import partial

import numpy as np

from data_prep.filters.punctuation import PUNCTUATION
from data_prep.filters.view import Rule, View, check_thresholds

STOP_WORDS = frozenset(["the", "be", "to", "of", "and", "that", "have", "with"])
_ELLIPSES, _BULLETS = ("...", "…"), ("•", "-")


@dataclass(frozen=True)
class GopherQuality:
    """min_stop_words: different ones of `the be to of and that have with`. The ratios are per word or per line."""

    min_words: int | None = 50
    max_words: int | None = 100_000
    min_mean_word: float | None = 3
    max_mean_word: float | None = 10
    max_hash_ratio: float | None = 0.1
    max_ellipsis_ratio: float | None = 0.1
    max_bullet_lines: float | None = 0.9
    max_ellipsis_lines: float | None = 0.3
    min_letter_words: float | None = 0.8
    min_stop_words: int | None = 2

    def check(self, where: str = "gopher_quality") -> None:
        """Raises ConfigError."""
        check_thresholds(self, where)


@dataclass(frozen=True)
class GopherRepetition:
    """Shares of paragraphs, lines and characters, each the most that is kept."""

    duplicate_paragraphs: float | None = 0.3
    duplicate_paragraph_characters: float | None = 0.2
    duplicate_lines: float | None = 0.3
    duplicate_line_characters: float | None = 0.2
    top_2_gram: float | None = 0.20
    top_3_gram: float | None = 0.18
    top_4_gram: float | None = 0.16
    duplicate_5_grams: float | None = 0.15
    duplicate_6_grams: float | None = 0.14
    duplicate_7_grams: float | None = 0.13
    duplicate_8_grams: float | None = 0.12
    duplicate_9_grams: float | None = 0.11
    duplicate_10_grams: float | None = 0.10

    def check(self, where: str = "gopher_repetition") -> None:
        """Raises ConfigError."""
        check_thresholds(self, where)


def _spelled(view: View) -> list[str]:
    """Words with a character that is no punctuation."""
    return [word for word in view.words if not PUNCTUATION.issuperset(word)]


def _mean_word(view: View) -> float | None:
    words = _spelled(view)
    return sum(map(len, words)) / len(words) if words else None


def _ratio(count: float, total: float) -> float:
    """0 of nothing."""
    return count / total if total else 0.0


def _short_words(view: View, least: float) -> bool:
    mean = _mean_word(view)
    return mean is not None and mean < least


def _long_words(view: View, most: float) -> bool:
    mean = _mean_word(view)
    return mean is not None and mean > most


def _symbols(view: View, most: float, symbols: tuple[str, ...]) -> bool:
    return _ratio(sum(map(view.text.count, symbols)), len(view.words)) > most


def _bullet_lines(view: View, most: float) -> bool:
    return _ratio(sum(line.lstrip().startswith(_BULLETS) for line in view.lines), len(view.lines)) > most


def _ellipsis_lines(view: View, most: float) -> bool:
    return _ratio(sum(line.rstrip().endswith(_ELLIPSES) for line in view.lines), len(view.lines)) > most


def _few_letters(view: View, least: float) -> bool:
    return bool(view.words) and sum(any(map(str.isalpha, word)) for word in view.words) / len(view.words) < least


QUALITY_RULES = (
    Rule("gopher_few_words", "min_words", lambda view, least: len(_spelled(view)) < least),
    Rule("gopher_many_words", "max_words", lambda view, most: len(_spelled(view)) > most),
    Rule("gopher_short_words", "min_mean_word", _short_words),
    Rule("gopher_long_words", "max_mean_word", _long_words),
    Rule("gopher_hashes", "max_hash_ratio", partial(_symbols, symbols=("#",))),
    Rule("gopher_ellipses", "max_ellipsis_ratio", partial(_symbols, symbols=_ELLIPSES)),
    Rule("gopher_bullet_lines", "max_bullet_lines", _bullet_lines),
    Rule("gopher_ellipsis_lines", "max_ellipsis_lines", _ellipsis_lines),
    Rule("gopher_letters", "min_letter_words", _few_letters),
    Rule("gopher_stop_words", "min_stop_words", lambda view, least: len(STOP_WORDS.intersection(view.words)) < least),
)


def duplicates(parts: list[str]) -> tuple[int, int]:
    """How many parts occurred before, and their characters."""
    again = Counter(parts)
    repeated = [(count - 1, len(part)) for part, count in again.items() if count > 1]
    return sum(count for count, _ in repeated), sum(count * length for count, length in repeated)


def _duplicate_share(view: View, most: float, parts: str) -> bool:
    found = getattr(view, parts)
    return _ratio(duplicates(found)[0], len(found)) > most


def _duplicate_characters(view: View, most: float, parts: str) -> bool:
    return _ratio(duplicates(getattr(view, parts))[1], len(view.text)) > most


def _top_ngram(view: View, most: float, n: int) -> bool:
    ngrams = view.ngrams(n)
    if not len(ngrams):
        return False
    _, first, counts = np.unique(ngrams, return_index=True, return_counts=True)
    # of several, the one that comes first
    count = counts.max()
    start = first[counts == count].min()
    return count * (view.characters(start, n) + n - 1) / len(view.text) > most


def _duplicate_ngrams(view: View, most: float, n: int) -> bool:
    ngrams = view.ngrams(n)
    _, inverse, counts = np.unique(ngrams, return_inverse=True, return_counts=True)
    repeated = np.flatnonzero(counts[inverse] > 1)
    seen, characters, free = set(), 0, 0
    for k, ngram in zip(repeated.tolist(), inverse[repeated].tolist(), strict=True):
        if k < free:
            continue
        if ngram in seen:
            characters += view.characters(k, n)
            free = k + n
        seen.add(ngram)
    return _ratio(characters, len(view.text)) > most


REPETITION_RULES = (
    Rule("gopher_duplicate_paragraphs", "duplicate_paragraphs", partial(_duplicate_share, parts="paragraphs")),
    Rule(
        "gopher_duplicate_paragraph_characters",
        "duplicate_paragraph_characters",
        partial(_duplicate_characters, parts="paragraphs"),
    ),
    Rule("gopher_duplicate_lines", "duplicate_lines", partial(_duplicate_share, parts="line_runs")),
    Rule("gopher_duplicate_line_characters", "duplicate_line_characters", partial(_duplicate_characters, parts="line_runs")),
    *(Rule(f"gopher_top_{n}_gram", f"top_{n}_gram", partial(_top_ngram, n=n)) for n in (2, 3, 4)),
    *(Rule(f"gopher_duplicate_{n}_grams", f"duplicate_{n}_grams", partial(_duplicate_ngrams, n=n)) for n in range(5, 11)),
)
