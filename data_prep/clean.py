"""Cleaning: texts that look alike become equal. And how what is dropped on the way is counted."""

import unicodedata
from collections import Counter
from dataclasses import dataclass, field

EXAMPLES = 5


@dataclass
class Report:
    """What became of a source's records. counts: by outcome. examples: the first few names of each kind of drop."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, reason: str, name: str) -> None:
        self.counts[reason] += 1
        names = self.examples.setdefault(reason, [])
        if len(names) < EXAMPLES:
            names.append(name)


def clean(text: str, nfc: bool = True) -> str:
    """`\\r\\n` and `\\r` become `\\n`; canonically equal texts become equal. Cleaning twice changes nothing."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return unicodedata.normalize("NFC", text) if nfc else text
