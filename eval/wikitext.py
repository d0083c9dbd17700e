"""WikiText as text again: its spaces around punctuation and its @-marks are undone, by the rules that published figures use.

The rules are those of Megatron-LM's `wikitext_detokenizer`, which lm-evaluation-harness applies as well; tested against the latter.
"""

import re

APOSTROPHES = [("s '", "s'")]
NUMBERS = [(" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", ".")]
STOPS = [(f" {mark} ", f"{mark} ") for mark in ":;.!?,"]
PAIRS = [
    (re.compile(rf"{left}\s*([^{inside}]*?)\s*{right}"), rf"{plain_left}\1{plain_right}")
    for left, inside, right, plain_left, plain_right in (
        (r"\(", r"\)", r"\)", "(", ")"),
        (r"\[", r"\]", r"\]", "[", "]"),
        ("{", "}", "}", "{", "}"),
        ('"', '"', '"', '"', '"'),
        ("'", "'", "'", "'", "'"),
    )
]
REST = [
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
]


def detokenized(text: str) -> str:
    """The text that a model is given in place of WikiText's."""
    for old, new in APOSTROPHES + NUMBERS + STOPS:
        text = text.replace(old, new)
    for pattern, new in PAIRS:
        text = pattern.sub(new, text)
    for old, new in REST:
        text = text.replace(old, new)
    return text
