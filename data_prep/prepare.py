"""From a recipe to a dataset: documents -> duplicates -> tokenizer -> tokens -> shards, then reports and the manifest.

Killed anywhere and started again, it makes the same bytes as undisturbed, whatever `workers` is (`stages`).
"""

import errno
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path

from rich.progress import Progress

from data_prep.bars import progress_bars, reading, tracker
from data_prep.card import write_card
from data_prep.clean import Report
from data_prep.outcome import Outcome
from data_prep.place import check_place
from data_prep.readers import ReadLog
from data_prep.recipe import Recipe
from data_prep.report import write_report, write_run
from data_prep.stages import documents, duplicates, shards, tokenizer, tokens, work
from data_prep.stages.work import FORMAT, WORK, Work
from data_prep.workers import Workers
from llm.data.manifest import NAME, TOKENIZER, Manifest, Shard, Source
from llm.data.plan import FILES as PLANS
from llm.data.shard import token_dtype
from llm.data.write import tokenizer_info
from llm.errors import DataError
from llm.whole_file import write_bytes

FULL = (errno.ENOSPC, errno.EDQUOT)
# what the dataset was prepared from; lets a second run see that there is nothing to do
RECORD = "prepared.json"


def prepare(recipe: Recipe, replace: bool = False, until: str | None = None) -> Manifest | Outcome:
    """Prepare `recipe.out`, or return the dataset there when the same recipe made it from the same files.

    Args:
        replace: overwrite the dataset there, whatever made it; it stays whole until the first new shard is written.
        until: stop after this stage, keep the work folder, and return what was found.

    Raises:
        DataError: no text, a tokenizer that is none, or a folder that holds another dataset or other files.
    """
    out = Path(recipe.out)
    check_place(out)
    record = {"recipe": recipe.hash, "inputs": fingerprint(recipe)}
    key = hashlib.sha256(json.dumps([record, FORMAT]).encode()).hexdigest()[:16]
    if (out / NAME).exists() and not replace:
        return _there(out, record, key)
    tokenizer.given(recipe.tokenizer)
    try:
        with work.opened(out, key) as folder:
            return _prepare(recipe, folder, record, until)
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise DataError(f"out ({out}) cannot be written ({error.strerror}); make room, and run the same command to go on") from None


def _prepare(recipe: Recipe, folder: Work, record: dict, until: str | None) -> Manifest | Outcome:
    seconds: dict[str, float] = {}
    with progress_bars() as bars, Workers(recipe.processes) as workers:
        for stage in _timed(_stages(recipe, folder, workers, bars), seconds):
            if stage == until:
                return Outcome.of(recipe, folder)
        start = time.monotonic()
        written = _shards(recipe, folder, workers, bars)
        seconds["shards"] = time.monotonic() - start
    manifest = _finish(recipe, folder, written, record, seconds)
    work.remove(Path(recipe.out))
    return manifest


def _there(out: Path, record: dict, key: str) -> Manifest:
    try:
        same = json.loads((out / RECORD).read_bytes()) == record
    except (OSError, ValueError):
        same = False
    if not same:
        law = "holds a dataset of another recipe or of other files"
        raise DataError(f"out ({out}) {law}; choose another out=..., or add --replace")
    manifest = Manifest.load(out)
    if (out / WORK / key).exists():
        # of a run that was killed when all else was done
        with work.opened(out, key):
            work.remove(out)
    return manifest


def fingerprint(recipe: Recipe) -> str:
    """Names, sizes and times of change of all that is read, as make sees them: cheap also for a terabyte."""
    digest = hashlib.sha256()
    for source, name, path in _inputs(recipe):
        try:
            stat = path.stat()
        except OSError:
            # the reader will say so
            continue
        digest.update(f"{source}\0{name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _inputs(recipe: Recipe) -> Iterator[tuple[str, str, Path]]:
    for name, source in recipe.sources.items():
        yield from ((name, file.name, file.path) for file in source.read.inputs(ReadLog(name, Report())))
    # no source has a name with a space
    if recipe.decontamination is not None:
        yield from (("evaluation file", name, Path(name)) for name in recipe.decontamination.files)
    if recipe.tokenizer.path is not None:
        yield "given tokenizer", recipe.tokenizer.path, Path(recipe.tokenizer.path)


def _stages(recipe: Recipe, folder: Work, workers: Workers, bars: Progress) -> Iterator[str]:
    """Work through all stages but the last; gives the name of each that is done."""
    with reading(bars) as count:
        documents.run(recipe, folder, workers, count)
    outcome = Outcome.of(recipe, folder)
    if not outcome.documents:
        work.remove(Path(recipe.out), made=True)
        raise DataError(_no_text(outcome))
    yield "documents"
    if recipe.dedup is not None:
        duplicates.run(recipe.dedup, folder, workers, tracker(bars, "duplicates"))
        outcome = Outcome.of(recipe, folder)
    yield "duplicates"
    tokenizer.run(recipe, folder, workers, tracker(bars, "tokenizer"), outcome.text_bytes)
    yield "tokenizer"
    tokens.run(recipe.validation, folder, workers, tracker(bars, "tokens"))
    yield "tokens"


def _no_text(outcome: Outcome) -> str:
    drops = {row.step: row.dropped for found in outcome.rows.values() for row in found if row.dropped}
    said = ", ".join(f"{count} {step}" for step, count in drops.items()) or "no records"
    return f"sources ({', '.join(outcome.recipe.sources)}) hold no text at all ({said}); see what `braid-data read` says of them"


def _timed(stages: Iterator[str], seconds: dict[str, float]) -> Iterator[str]:
    start = time.monotonic()
    for stage in stages:
        seconds[stage] = time.monotonic() - start
        yield stage
        start = time.monotonic()


def _shards(recipe: Recipe, folder: Work, workers: Workers, bars: Progress) -> list[Shard]:
    out = Path(recipe.out)
    plans = list(shards.plan(recipe.sources, folder, recipe.shard_tokens))
    # from here on what was there is no dataset, and its packing none of the next one's
    (out / NAME).unlink(missing_ok=True)
    for stale in (path for pattern in PLANS for path in out.glob(pattern)):
        stale.unlink()
    return shards.run(plans, out, folder, workers, tracker(bars, "shards"))


def _finish(recipe: Recipe, folder: Work, written: list[Shard], record: dict, seconds: dict[str, float]) -> Manifest:
    """Write all but the shards; the manifest last, for without one the folder is no dataset."""
    out, content = Path(recipe.out), folder.tokenizer.read_bytes()
    info = tokenizer_info(content)
    sources = {name: Source(float(source.weight), source.licence) for name, source in recipe.sources.items()}
    manifest = Manifest(token_dtype(info.vocabulary).name, info, sources, tuple(written), recipe.hash, out)
    write_bytes(out / TOKENIZER, content)
    outcome = Outcome.of(recipe, folder)
    write_report(manifest, outcome)
    write_card(manifest, outcome)
    write_run(manifest, outcome, seconds)
    write_bytes(out / RECORD, json.dumps(record, indent=1).encode())
    manifest.write()
    return manifest
