"""Fenced blocks of a Markdown file, with the tags of their info strings.

```bash                   is run by the tests
```bash skip=cluster      is not; the reason is one of SKIPS
"""

import re
from dataclasses import dataclass

SKIPS = {
    "clone": "fetches the repository that is being tested",
    "cluster": "needs a SLURM cluster",
    "gpu": "needs a GPU",
    "hub": "downloads from the network",
    "long": "takes longer than a test may",
}
# Inside a block that is run: this test is a part of what they start.
OURSELVES = {"make test", "make test-all"}


@dataclass(frozen=True)
class Block:
    """One fenced block; `line` is its fence's."""

    language: str
    tags: tuple[str, ...]
    line: int
    text: str

    @property
    def runs(self) -> bool:
        return not self.tags

    @property
    def commands(self) -> str:
        """The text without the commands that would start this test again."""
        return "".join(line for line in self.text.splitlines(keepends=True) if line.split("#")[0].strip() not in OURSELVES)


def blocks(markdown: str, language: str) -> list[Block]:
    """The blocks of `language` in order. Raises ValueError for an unknown tag or a fence that does not end."""
    found = []
    opened: tuple[int, list[str]] | None = None
    text: list[str] = []
    for number, line in enumerate(markdown.splitlines(), start=1):
        fence = re.fullmatch(r"\s*```(.*)", line)
        if fence and opened is None:
            opened, text = (number, fence.group(1).split()), []
        elif fence and opened is not None:
            begin, words = opened
            if words[:1] == [language]:
                found.append(Block(language, _known(words[1:], begin), begin, "".join(text)))
            opened = None
        else:
            text.append(line + "\n")
    if opened is not None:
        raise ValueError(f"line {opened[0]}: the fenced block does not end")
    return found


def _known(tags: list[str], line: int) -> tuple[str, ...]:
    for tag in tags:
        key, _, reason = tag.partition("=")
        if key != "skip" or reason not in SKIPS:
            raise ValueError(f"line {line}: {tag!r} is no known tag; write skip= with one of {', '.join(sorted(SKIPS))}")
    return tuple(tags)
