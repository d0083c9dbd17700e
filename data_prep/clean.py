"""Reading and cleaning: bytes of a file -> the text of a document, or the reason why there is none; every drop is counted."""

import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

EXAMPLES = 5


@dataclass
class Report:
    """What became of a source's files. counts: by outcome. examples: the first few names of each kind of drop."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, reason: str, name: str) -> None:
        self.counts[reason] += 1
        names = self.examples.setdefault(reason, [])
        if len(names) < EXAMPLES:
            names.append(name)


def read_document(name: str, path: Path, nfc: bool, report: Report) -> str | None:
    """The cleaned text of a file: UTF-8 without a byte order mark, `\\n` line ends, NFC. None when dropped, as `report` says."""
    report.counts["read"] += 1
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError:
        return report.drop("unreadable", name)
    except UnicodeDecodeError:
        return report.drop("undecodable", name)
    text = clean(text, nfc)
    if not text.strip():
        return report.drop("empty", name)
    report.counts["kept"] += 1
    return text


def clean(text: str, nfc: bool = True) -> str:
    """`\\r\\n` and `\\r` become `\\n`; canonically equal texts become equal. Cleaning twice changes nothing."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return unicodedata.normalize("NFC", text) if nfc else text
