"""Trying a source: its first documents as a dataset would hold them, and what is dropped on the way, without writing anything."""

from collections.abc import Iterator

from data_prep.clean import Report
from data_prep.ledger import Processed, rows
from data_prep.markup import markdown
from data_prep.readers import ReadLog
from data_prep.recipe import Recipe
from data_prep.stages.documents import Part, new_ledger, process
from data_prep.stages.work import Text


def tried(recipe: Recipe, source: str, n: int) -> Iterator[str]:
    """Lines to print: the first `n` documents that are kept, each drop before them as it happens, and the counts."""
    drops: list[str] = []
    report, total = Report(), new_ledger(recipe, source)
    log = ReadLog(source, report, lambda reason, place: drops.append(f"--- not read: {place} ({reason})"))
    left = n
    for record in recipe.sources[source].read.records(log) if n else ():
        yield from drops
        drops.clear()
        ledger = new_ledger(recipe, source)
        kept = list(process(Part(0, source, [Text(record.id, record.text)]), recipe, ledger))
        total.merge(ledger)
        if not kept:
            yield f"--- dropped: {record.id} ({_reason(ledger)})"
            continue
        yield f"--- {record.id} · {len(kept[0].text.encode()):,} bytes"
        yield kept[0].text
        left -= 1
        if not left:
            break
    yield from drops
    yield markdown(["step", "dropped", "bytes", "documents left", "bytes left"], rows(report, total))


def _reason(ledger: Processed) -> str:
    """Of the one document in it."""
    if ledger.empty.documents:
        return "empty"
    if ledger.contaminated.documents:
        return f"contaminated, {', '.join(name for name, report in ledger.evaluations.items() if report.matched)}"
    return next(name for name, rule in ledger.filters.rules.items() if rule.dropped)
