"""The rules of C4 (Raffel et al. 2020, arXiv:1910.10683, section 2.2), which drop lines of a page and whole pages.

As in the code that made C4 (tensorflow_datasets, `c4_utils.py: clean_page`) and in datatrove 0.10.1 (`c4_filters.py`), from which:
- lines lose the white space around them and `[1]`, `[edit]`, `[citation needed]`; lines of a word of more than 1000 characters go,
  and those that end in `...`; the words of a line are counted before citations go, at white space;
- `lorem ipsum` and `{` drop the page only from a line that is kept thus far;
- the paper's list of bad words is left out, and so is its language rule (`language.py`).
Differences: a page of no kept line fails with `min_sentences` off too, as `c4_few_sentences`; sentences are counted by punctuation
alone (`view.py`), where C4 used NLTK and datatrove uses spaCy.
"""

import re
from collections import Counter
from dataclasses import dataclass

from data_prep.filters.view import check_thresholds, count_sentences

CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
END_MARKS = (".", "?", "!", '"', "'")
POLICIES = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")

# reasons that drop a page, in the order in which they are looked for
PAGE_RULES = {"c4_lorem_ipsum": "lorem_ipsum", "c4_curly_bracket": "curly_bracket", "c4_few_sentences": "min_sentences"}


@dataclass(frozen=True)
class C4:
    """terminal_punctuation, javascript, policy, max_word, min_words: of lines. lorem_ipsum, curly_bracket, min_sentences: of pages.

    citations: take them out. FineWeb keeps lines without terminal punctuation (arXiv:2406.17557, section 3.5), C4 drops them.
    """

    terminal_punctuation: bool = True
    min_words: int | None = 3
    max_word: int | None = 1000
    javascript: bool = True
    policy: bool = True
    citations: bool = True
    lorem_ipsum: bool = True
    curly_bracket: bool = True
    min_sentences: int | None = 5

    def check(self, where: str = "c4") -> None:
        """Raises ConfigError."""
        check_thresholds(self, where)

    def rules(self) -> list[str]:
        """Those that drop pages and are on."""
        return [rule for rule, setting in PAGE_RULES.items() if getattr(self, setting) not in (None, False)]


def clean_page(text: str, config: C4, lines: Counter[str]) -> tuple[str, str | None]:
    """(the text of the lines kept, None), or (the text as it was, the reason that drops it).

    Args:
        lines: gets the lines by outcome: `kept`, or the reason that dropped them.
    """
    kept, sentences = [], 0
    for line in text.splitlines():
        line, reason = clean_line(line, config)
        if reason in PAGE_RULES:
            return text, reason
        lines[reason or "kept"] += 1
        if reason is None:
            kept.append(line)
            sentences += count_sentences(line)
    if sentences < (config.min_sentences or 1):
        return text, "c4_few_sentences"
    return "\n".join(kept).strip(), None


def clean_line(line: str, config: C4) -> tuple[str, str | None]:
    """(the line, why it goes); the reason of a whole page is one of PAGE_RULES."""
    line = line.strip()
    words = line.split()
    if config.max_word is not None and any(len(word) > config.max_word for word in words):
        return line, "c4_long_word"
    if config.citations:
        line = CITATION.sub("", line)
    if config.terminal_punctuation and (not line.endswith(END_MARKS) or line.endswith("...")):
        return line, "c4_no_terminal_punctuation"
    if config.min_words is not None and len(words) < config.min_words:
        return line, "c4_few_words"
    return line, _forbidden(line, config)


def _forbidden(line: str, config: C4) -> str | None:
    lower = line.lower()
    if config.lorem_ipsum and "lorem ipsum" in lower:
        return "c4_lorem_ipsum"
    if config.javascript and "javascript" in lower:
        return "c4_javascript"
    if config.curly_bracket and "{" in line:
        return "c4_curly_bracket"
    if config.policy and any(policy in lower for policy in POLICIES):
        return "c4_policy"
    return None
