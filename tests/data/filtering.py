"""Texts that meet the thresholds of filters from both sides."""

import glob
import inspect
import random
import sysconfig
from functools import cache
from pathlib import Path

from data_prep.filters.view import split_words

WORDS = """
    the be to of and that have with a time year people way day man thing woman life child world school state family
    student group country problem hand part place case week company system program question work government number night
    point home water room mother area money story fact month lot right study book eye job word business issue side kind
    head house service friend
""".split()
MARKED = [
    "",
    "- ",
    "• ",
    "# ",
    "javascript ",
    "{ ",
    "lorem ipsum ",
    "privacy policy ",
    "[1] ",
    "[edit] ",
    "12345 ",
    "... ",
    "a b c d e ",
    "don't ",
    "e.g. ",
]
ENDS = [".", "", ",", "...", "…", '"', "!", "?", ".[2]", "。", "'"]
JOINS = ["\n", "\n\n", " ", "\n\n\n", "\r\n", "\u2028"]


def generated(seed: int) -> str:
    """Sentences, lists, menus and repetition; most thresholds are met from both sides."""
    rng = random.Random(seed)
    tame = rng.random() < 0.4
    mark, repeat = 0.02 if tame else rng.random() ** 2, 0.0 if tame else rng.random() ** 2
    vocabulary = rng.sample(WORDS, rng.choice([4, 20, len(WORDS)])) if not tame else WORDS
    lines, paragraph = [], rng.choice(JOINS)
    for _ in range(rng.choice([1, 3, 10, 30])):
        if lines and rng.random() < repeat:
            lines.append(rng.choice(lines))
            continue
        words = rng.choices(vocabulary, k=rng.choice([1, 2, 5, 12, 40]))
        if rng.random() < 0.01:
            words.append("x" * 1001)
        if rng.random() < repeat:
            words += words[:12]
        text = " ".join(words) + rng.choice(ENDS if rng.random() < mark else ["."])
        lines.append((rng.choice(MARKED) if rng.random() < mark else "") + text)
    return paragraph.join(lines)


@cache
def texts() -> list[str]:
    """Generated ones, then sources and docstrings of the standard library and what documents this machine has."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    sources = [path.read_text(encoding="utf-8", errors="replace")[:20_000] for path in sorted(stdlib.glob("*.py"))[:60]]
    docs = [doc for name in ("argparse", "difflib", "pickle", "random") if (doc := inspect.getdoc(__import__(name)))]
    found = [path for path in sorted(glob.glob("/usr/share/doc/*/copyright"))[:40] if Path(path).is_file()]
    shared = [Path(path).read_text(encoding="utf-8", errors="replace")[:20_000] for path in found]
    # a share of hashes that few of the others have
    hashes = [f"{'# ' * n}the people of that time have a place. " * 9 for n in range(1, 5)]
    # datatrove divides by the number of words
    return [text for text in [*map(generated, range(500)), *hashes, *sources, *docs, *shared] if split_words(text)]
