"""The folder `report/` beside the manifest: everything that was found, for machines, and samples to look at, for people."""

import json
import resource
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from data_prep.lengths import histogram, plot
from data_prep.markup import block, code
from data_prep.outcome import Outcome
from llm.data.manifest import Manifest
from llm.whole_file import write_bytes

REPORT = "report"
FILES = ("report.json", "duplicates.json", "contamination.json", "drops.md", "lengths.png", "run.json")


def write_report(manifest: Manifest, outcome: Outcome) -> None:
    """The same bytes for the same recipe and inputs; what an earlier preparation left there goes.

    report.json: the ledger of every source. duplicates.json: clusters and examples. contamination.json: by evaluation file.
    drops.md: samples of what each step dropped. lengths.png: of the documents.
    """
    folder = manifest.root / REPORT
    folder.mkdir(exist_ok=True)
    for old in [*(folder / name for name in FILES), *folder.glob(".*.tmp")]:
        old.unlink(missing_ok=True)
    lengths = histogram(outcome.work)
    _json(folder / "report.json", {"sources": _sources(outcome), "lengths": {name: c.tolist() for name, c in lengths.items()}})
    if outcome.duplicates is not None:
        _json(folder / "duplicates.json", outcome.duplicates)
    if outcome.recipe.decontamination is not None:
        _json(folder / "contamination.json", {name: asdict(report) for name, report in outcome.evaluations().items()})
    write_bytes(folder / "drops.md", "".join(_drops(outcome)).encode(errors="backslashreplace"))
    plot(lengths, folder / "lengths.png")


def write_run(manifest: Manifest, outcome: Outcome, seconds: dict[str, float]) -> None:
    """run.json: what this run took, which is never the same twice. Stages that were done already take no time.

    peak_mb: resident memory of this process, and of the largest of its workers.
    """
    tokens = sum(shard.tokens for shard in manifest.shards)
    peaks = {"main": resource.RUSAGE_SELF, "largest worker": resource.RUSAGE_CHILDREN}
    content = {
        "workers": outcome.recipe.processes,
        "seconds": {name: round(took, 3) for name, took in seconds.items()},
        "mtok_per_second": round(tokens / 1e6 / max(1e-9, seconds["tokens"]), 3),
        "text_mb_per_second": round(outcome.text_bytes / 1e6 / max(1e-9, sum(seconds.values())), 3),
        "peak_mb": {name: resource.getrusage(who).ru_maxrss // 1024 for name, who in peaks.items()},
    }
    _json(manifest.root / REPORT / "run.json", content)


def _json(path: Path, content: dict) -> None:
    write_bytes(path, json.dumps(content, indent=1).encode() + b"\n")


def _sources(outcome: Outcome) -> dict[str, dict]:
    return {
        name: {
            "read": dict(outcome.reading[name].counts),
            "processed": outcome.processed[name].to_dict(),
            "steps": [row._asdict() for row in rows],
        }
        for name, rows in outcome.rows.items()
    }


def _drops(outcome: Outcome) -> Iterator[str]:
    yield "# Samples of what was dropped\n\nChosen by a hash of their ids, but for what could not be read: there the first.\n"
    for name, reading in outcome.reading.items():
        yield f"\n## {name}\n"
        processed = outcome.processed[name]
        for reason, places in {**reading.examples, "empty": processed.empty_examples}.items():
            if places:
                yield f"\n### {reason}\n\n" + "".join(f"- {code(place)}\n" for place in places)
        for rule, report in processed.filters.rules.items():
            if report.samples:
                yield f"\n### {rule}: {report.dropped:,} of {report.dropped + report.kept:,}\n"
            for sample in report.samples:
                yield f"\n{code(sample.id)}\n\n{block(sample.excerpt)}"
    yield from _contaminated(outcome)
    yield from _duplicates(outcome)


def _contaminated(outcome: Outcome) -> Iterator[str]:
    for file, report in outcome.evaluations().items():
        if report.matched:
            yield f"\n## Text of {code(file)}: {sum(report.matched.values()):,} documents\n\n"
            yield "".join(f"- {code(id)}: {code(example)}\n" for id, example in report.examples)


def _duplicates(outcome: Outcome) -> Iterator[str]:
    if outcome.duplicates and outcome.duplicates["largest"]:
        yield "\n## Largest clusters of duplicates\n\n"
        yield "".join(f"- {each['documents']:,} documents; kept {code(each['kept'])}\n" for each in outcome.duplicates["largest"])
    if outcome.duplicates and outcome.duplicates["pairs"]:
        yield "\n## Near duplicates\n\n"
        for pair in outcome.duplicates["pairs"]:
            alike = "of no shingles" if pair["similarity"] is None else f"similarity about {pair['similarity']:.2f}"
            yield f"- {code(pair['dropped'])} of {code(pair['kept'])}, {alike}\n"
