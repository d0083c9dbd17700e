"""FineWeb's own rules (Penedo et al. 2024, arXiv:2406.17557, section 3.6), with the thresholds of the code that made it.

That code is datatrove 0.10.1 (`fineweb_quality_filter.py`), with which every rule agrees given the same words. Where it and the
paper differ we follow the code: a hundredth of the characters in repeated lines, where the paper says a tenth, and a limit on line
feeds per word, which the paper leaves out. Terminal punctuation is that of all scripts.
Differences: a text of nothing but white space passes here (cleaning drops it), and so does one without any word by `line_feeds`,
where datatrove divides by zero.
"""

from dataclasses import dataclass

from data_prep.filters.gopher import duplicates
from data_prep.filters.punctuation import TERMINAL
from data_prep.filters.view import Rule, View, check_thresholds

SHORT_LINE = 30
_TERMINAL = tuple(TERMINAL)


@dataclass(frozen=True)
class FineWeb:
    """min_punctuated_lines: share of lines that end in terminal punctuation. max_short_lines: share of at most 30 characters.

    max_repeated_characters: share of characters in lines that came before. max_line_feeds: per word.
    """

    min_punctuated_lines: float | None = 0.12
    max_short_lines: float | None = 0.67
    max_repeated_characters: float | None = 0.01
    max_line_feeds: float | None = 0.3

    def check(self, where: str = "fineweb") -> None:
        """Raises ConfigError."""
        check_thresholds(self, where)


def _unpunctuated(view: View, least: float) -> bool:
    lines = view.filled_lines
    return bool(lines) and sum(line.endswith(_TERMINAL) for line in lines) / len(lines) < least


def _short_lines(view: View, most: float) -> bool:
    lines = view.filled_lines
    return bool(lines) and sum(len(line) <= SHORT_LINE for line in lines) / len(lines) > most


def _repeated_characters(view: View, most: float) -> bool:
    characters = len(view.text) - view.text.count("\n")
    return characters > 0 and duplicates(view.filled_lines)[1] / characters > most


def _line_feeds(view: View, most: float) -> bool:
    return bool(view.words) and view.text.count("\n") / len(view.words) > most


FINEWEB_RULES = (
    Rule("fineweb_punctuated_lines", "min_punctuated_lines", _unpunctuated),
    Rule("fineweb_short_lines", "max_short_lines", _short_lines),
    Rule("fineweb_repeated_characters", "max_repeated_characters", _repeated_characters),
    Rule("fineweb_line_feeds", "max_line_feeds", _line_feeds),
)
