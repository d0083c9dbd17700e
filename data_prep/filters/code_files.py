"""Rules for source code: those of Codex (Chen et al. 2021, arXiv:2107.03374, section 3.1) with StarCoder's share of letters.

Codex drops files of lines of more than 100 characters on average or more than 1000 at most, and those with few alphanumeric
characters; The Stack and StarCoder (Li et al. 2023, arXiv:2305.06161, section 3.1) ask for a quarter. Lengths leave out the `\\n`.
Rules for prose don't fit: C4 drops what holds a `{`, Gopher what holds no `the` or `of`.
"""

from dataclasses import dataclass

from data_prep.filters.view import Rule, View, check_thresholds


@dataclass(frozen=True)
class CodeFiles:
    """In characters; min_alphanumeric: share of letters and digits."""

    max_mean_line: float | None = 100
    max_line: int | None = 1000
    min_alphanumeric: float | None = 0.25

    def check(self, where: str = "code") -> None:
        """Raises ConfigError."""
        check_thresholds(self, where)


def _mean_line(view: View, most: float) -> bool:
    lines = view.text.removesuffix("\n").split("\n")
    return sum(map(len, lines)) / len(lines) > most


def _longest_line(view: View, most: float) -> bool:
    return max(map(len, view.text.split("\n"))) > most


def _alphanumeric(view: View, least: float) -> bool:
    return sum(map(str.isalnum, view.text)) < least * len(view.text)


CODE_RULES = (
    Rule("code_mean_line", "max_mean_line", _mean_line),
    Rule("code_longest_line", "max_line", _longest_line),
    Rule("code_alphanumeric", "min_alphanumeric", _alphanumeric),
)
