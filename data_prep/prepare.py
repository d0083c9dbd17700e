"""From a recipe to a dataset: list -> clean -> tokenizer -> shards, manifest and data card.

Files are read twice, once for the tokenizer's sample and once to encode, so memory does not grow with the corpus.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import xxhash
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from data_prep.bpe import train_bpe
from data_prep.card import write_card
from data_prep.clean import Report, read_document
from data_prep.recipe import Recipe
from llm.data.manifest import NAME, TOKENIZER, Manifest, Source, write_whole
from llm.data.tokenizer import parse_tokenizer
from llm.data.write import DatasetWriter
from llm.errors import DataError

TRAIN, VALIDATION = "train", "validation"
# what the dataset was prepared from; lets a second run see that there is nothing to do
RECORD = "prepared.json"
BATCH_CHARACTERS = 1 << 20
# what a preparation that was cut short may have left
WRITTEN = re.compile(r"shard-\d+\.tar|tokenizer\.json|CARD\.md|prepared\.json")


class File(NamedTuple):
    """A file that may become a document."""

    source: str
    name: str
    path: Path


class Text(NamedTuple):
    """A cleaned document."""

    source: str
    text: str


def prepare(recipe: Recipe, replace: bool = False) -> Manifest:
    """Prepare `recipe.out`, or return the dataset there when the same recipe made it from the same files.

    Args:
        replace: overwrite the dataset there, whatever made it.

    Raises:
        DataError: no text, a tokenizer that is none, or a folder that holds another dataset or other files. What is there is
            touched only once there is text to write.
    """
    out = Path(recipe.out)
    _check_place(out)
    files = [File(source, name, path) for source, config in recipe.sources.items() for name, path in config.documents()]
    record = {"recipe": recipe.hash, "files": _fingerprint(files)}
    if (out / NAME).exists():
        if not replace and _is_prepared(out, record):
            return Manifest.load(out)
        if not replace:
            raise DataError(
                f"out ({out}) holds a dataset of another recipe or of other files; choose another out=..., or add --replace"
            )
    with progress_bars() as bars:
        return _prepare(recipe, out, files, record, bars)


def _check_place(out: Path) -> None:
    """Raise DataError unless `out` is a dataset, an interrupted one, empty, or can be made."""
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        law = "is not writable" if there.is_dir() else "is a file"
        raise DataError(f"out ({out}) cannot be made: {there} {law}; choose another out=...")
    if there != out or (out / NAME).exists():
        return
    names = sorted(path.name for path in out.iterdir())
    foreign = [name for name in names if not name.startswith(".") and not WRITTEN.fullmatch(name)]
    if foreign or (names and TOKENIZER not in names):
        raise DataError(f"out ({out}) holds other files ({(foreign or names)[0]}); choose another out=..., or an empty folder")


def progress_bars() -> Progress:
    """Progress bars on stderr, with counts and time left."""
    columns = TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()
    return Progress(*columns, console=Console(stderr=True))


def _prepare(recipe: Recipe, out: Path, files: list[File], record: dict, bars: Progress) -> Manifest:
    tokenizer_json = _tokenizer(recipe, files, bars)
    sources = {name: Source(float(source.weight), source.licence) for name, source in recipe.sources.items()}
    tokenizer = parse_tokenizer(tokenizer_json, recipe.tokenizer.path or TOKENIZER)
    reports = {name: Report() for name in recipe.sources}
    batches = _batches(_texts(recipe, files, reports, bars, "encode"))
    first = next(batches, None)
    if first is None:
        raise DataError(f"sources ({', '.join(sources)}) hold no text at all; see that their files are UTF-8 and not empty")
    (out / NAME).unlink(missing_ok=True)
    writer = DatasetWriter(out, tokenizer_json, sources, recipe.shard_tokens, recipe.hash)
    for batch in chain([first], batches):
        encodings = tokenizer.encode_batch_fast([document.text for document in batch], add_special_tokens=False)
        for document, encoding in zip(batch, encodings, strict=True):
            writer.add(document.source, _split(document.text, recipe.validation), encoding.ids, len(document.text.encode()))
    manifest = writer.close()
    write_card(manifest, recipe, reports)
    write_whole(out / RECORD, json.dumps(record, indent=1).encode())
    # last: without a manifest the folder is no dataset
    manifest.write()
    return manifest


def _is_prepared(out: Path, record: dict) -> bool:
    try:
        return json.loads((out / RECORD).read_bytes()) == record
    except (OSError, ValueError):
        return False


def _fingerprint(files: list[File]) -> str:
    """Names, sizes and times of change, as make sees them: cheap also for a terabyte."""
    digest = hashlib.sha256()
    for file in files:
        stat = file.path.stat()
        digest.update(f"{file.source}\0{file.name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _tokenizer(recipe: Recipe, files: list[File], bars: Progress) -> bytes:
    """The content of the given tokenizer.json, or of one trained on a sample of the training documents."""
    if recipe.tokenizer.path is not None:
        if not Path(recipe.tokenizer.path).is_file():
            raise DataError(f"tokenizer.path ({recipe.tokenizer.path}) does not exist; leave it out to train one")
        return Path(recipe.tokenizer.path).read_bytes()
    total = sum(file.path.stat().st_size for file in files)
    share = recipe.tokenizer.sample_bytes / max(1, total)
    texts = _texts(recipe, files, {name: Report() for name in recipe.sources}, bars, "sample")
    sample = [text for _, text in texts if _fraction(text, seed=1) < share and _split(text, recipe.validation) == TRAIN]
    task = bars.add_task("train tokenizer", total=None)
    content = train_bpe(sample, recipe.tokenizer.vocabulary)
    bars.update(task, total=1, completed=1)
    return content


def _texts(recipe: Recipe, files: list[File], reports: dict[str, Report], bars: Progress, step: str) -> Iterator[Text]:
    for file in bars.track(files, description=step):
        text = read_document(file.name, file.path, recipe.cleaning.nfc, reports[file.source])
        if text is not None:
            yield Text(file.source, text)


def _batches(texts: Iterator[Text]) -> Iterator[list[Text]]:
    batch, characters = [], 0
    for document in texts:
        batch.append(document)
        characters += len(document.text)
        if characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _split(text: str, validation: float) -> str:
    """By the text alone: a document never changes sides when others come or go, and its copies go with it."""
    return VALIDATION if _fraction(text) < validation else TRAIN


def _fraction(text: str, seed: int = 0) -> float:
    """The text's hash as a number in [0, 1)."""
    return xxhash.xxh3_64_intdigest(text.encode(), seed=seed) / 2**64
