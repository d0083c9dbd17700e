"""Stage 1: records are read in order by this process, and cleaned, filtered and decontaminated part by part by the workers.

In memory are, per worker, up to three parts of `PART` characters; a single longer record is a part by itself.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

import xxhash

from data_prep.clean import EXAMPLES, Report, clean
from data_prep.decontaminate import DecontaminationConfig, Evaluations, FileReport
from data_prep.filters import Filters
from data_prep.ledger import Processed
from data_prep.readers import ReadLog, Record
from data_prep.recipe import Recipe
from data_prep.signatures import Document
from data_prep.stages.work import Text, Work, load, save, write_documents
from data_prep.workers import Workers

PART = 16_000_000


class Part(NamedTuple):
    """Records of one source that follow each other."""

    number: int
    source: str
    records: list[Text]

    @property
    def digest(self) -> str:
        """Of what was read: whether a part that is there was made of it."""
        hash = xxhash.xxh3_128()
        for record in self.records:
            id, text = record.id.encode(errors="surrogatepass"), record.text.encode()
            hash.update(b"%d %d\n%b%b" % (len(id), len(text), id, text))
        return hash.hexdigest()


def run(recipe: Recipe, work: Work, workers: Workers, on_record: Callable[[Record], None]) -> None:
    """Fill the work folder with the parts. Raises DataError: a source or an evaluation file cannot be read."""
    if work.reading.exists():
        return
    if recipe.decontamination is not None:
        evaluations(recipe.decontamination)
    reports = {name: Report() for name in recipe.sources}
    sources: list[str] = []
    parts = cut(recipe, reports, sources, on_record)
    left = (part for part in parts if not _is_done(part, work))
    for _ in workers.in_order(partial(process_part, recipe=recipe, work=work), left):
        pass
    save(work.reading, {"parts": sources, "reports": {name: vars(report) for name, report in reports.items()}})


def reading(work: Work) -> dict[str, Report]:
    """What the readers counted, by source."""
    return {name: Report(Counter(v["counts"]), v["examples"]) for name, v in load(work.reading)["reports"].items()}


def ledgers(recipe: Recipe, work: Work) -> dict[str, Processed]:
    """What became of the records, by source."""
    found = {name: new_ledger(recipe, name) for name in recipe.sources}
    for number, source in enumerate(work.sources):
        found[source].merge(Processed.of(load(work.ledger(number))["ledger"]))
    return found


def new_ledger(recipe: Recipe, source: str) -> Processed:
    """Of no records: it names every rule."""
    found = Processed()
    Filters(recipe.sources[source].filters, found.filters)
    files = recipe.decontamination.files if recipe.decontamination else ()
    found.evaluations = {name: FileReport() for name in files}
    return found


def cut(recipe: Recipe, reports: dict[str, Report], sources: list[str], on_record: Callable[[Record], None]) -> Iterator[Part]:
    """The parts of all sources, by the lengths of the texts alone. Enters what is read into `reports`, and their sources."""
    for name, source in recipe.sources.items():
        for records in _pieces(source.read.records(ReadLog(name, reports[name])), on_record):
            sources.append(name)
            yield Part(len(sources) - 1, name, records)


def _pieces(records: Iterable[Record], on_record: Callable[[Record], None]) -> Iterator[list[Text]]:
    piece, characters = [], 0
    for record in records:
        on_record(record)
        if piece and characters + len(record.text) > PART:
            yield piece
            piece, characters = [], 0
        piece.append(Text(record.id, record.text))
        characters += len(record.text)
    if piece:
        yield piece


def _is_done(part: Part, work: Work) -> bool:
    there = load(work.ledger(part.number))
    return there is not None and (there["source"], there["digest"]) == (part.source, part.digest)


def process_part(part: Part, recipe: Recipe, work: Work) -> None:
    """Write what is kept of a part, then its ledger."""
    ledger = new_ledger(recipe, part.source)
    kept = list(process(part, recipe, ledger))
    write_documents(work.documents(part.number), kept)
    save(work.ledger(part.number), {"source": part.source, "digest": part.digest, "ledger": ledger.to_dict()})


def process(part: Part, recipe: Recipe, ledger: Processed) -> Iterator[Text]:
    """The documents that records become, and in `ledger` what became of the others."""
    filters = Filters(recipe.sources[part.source].filters, ledger.filters)
    known = evaluations(recipe.decontamination) if recipe.decontamination else None
    for id, raw in part.records:
        size = len(raw.encode())
        ledger.records.add(size)
        text = clean(raw, recipe.cleaning.nfc)
        if not text.strip():
            ledger.empty.add(size)
            ledger.empty_examples = [*ledger.empty_examples, id][:EXAMPLES]
            continue
        cleaned = len(text.encode())
        ledger.cleaned += size - cleaned
        filtered = filters.apply(id, text)
        if filtered is None:
            continue
        size = len(filtered.encode())
        ledger.edited += cleaned - size
        matches = known.matches(filtered) if known else []
        for match in matches:
            ledger.evaluations[match.file].count(Document(id, part.source, filtered), match)
        if matches and recipe.decontamination.drop:
            ledger.contaminated.add(size)
            continue
        ledger.kept.add(size)
        yield Text(id, filtered)


def evaluations(config: DecontaminationConfig) -> Evaluations:
    """Loaded once in a process, unless the files change."""
    paths = [Path(name).absolute() for name in config.files]
    states = tuple((path, path.stat().st_mtime_ns) for path in paths if path.is_file())
    return _evaluations(json.dumps(asdict(config)), states)


@lru_cache(maxsize=1)
def _evaluations(config: str, states: tuple) -> Evaluations:
    return Evaluations(DecontaminationConfig(**json.loads(config)))
