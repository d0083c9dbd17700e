"""`braid-data tokenizer`: tokenizers side by side on the same text."""

import argparse
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from data_prep.tokenizer_report import markdown, tokenizer_report
from llm.data import Manifest, documents, load_tokenizer
from llm.data.manifest import NAME, TOKENIZER
from llm.errors import ConfigError, DataError


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command's arguments."""
    parser = commands.add_parser("tokenizer", help="measure tokenizers side by side on text")
    parser.add_argument("tokenizers", nargs="+", metavar="TOKENIZER", help="a tokenizer.json, or a folder that holds one")
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--on", metavar="DATASET", help="measure on its text; without --on and --text, the first dataset named")
    text.add_argument("--text", nargs="+", metavar="FILE", help="measure on UTF-8 files, or all files of folders")
    parser.add_argument("--split", default="train", help="of the dataset (default: train)")
    parser.add_argument("--megabytes", type=float, default=16, help="text of each source at most (default: 16)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of Markdown")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Print the report. Raises ConfigError, DataError."""
    if not 0 < arguments.megabytes < math.inf:
        raise ConfigError(f"--megabytes ({arguments.megabytes:g}) must be positive and finite; use 16")
    files = {name: _tokenizer_file(Path(name)) for name in arguments.tokenizers}
    if arguments.text:
        texts = {"text": read_files(map(Path, arguments.text))}
    else:
        texts = _dataset_texts(_dataset(arguments), arguments.split)
    size = int(arguments.megabytes * 1e6)
    bounded = {source: first_bytes(stream, size) for source, stream in texts.items()}
    report = tokenizer_report({name: path.read_bytes() for name, path in files.items()}, bounded)
    print(json.dumps(report, indent=1) if arguments.json else markdown(report), end="")


def read_files(paths: Iterable[Path]) -> Iterator[str]:
    """The text of each file, and of every file below each folder, in the order of paths. Raises DataError."""
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if not file.is_dir():
                try:
                    yield file.read_bytes().decode()
                except OSError as error:
                    raise DataError(f"text {file} cannot be read ({error.strerror}); name another file") from None
                except UnicodeDecodeError:
                    raise DataError(f"text {file} is not UTF-8; convert it, or name other files") from None


def first_bytes(texts: Iterable[str], size: int) -> Iterator[str]:
    """Texts until they hold `size` bytes."""
    for text in texts:
        yield text
        size -= len(text.encode())
        if size <= 0:
            return


def _tokenizer_file(path: Path) -> Path:
    file = path / TOKENIZER if path.is_dir() else path
    if not file.is_file():
        raise DataError(f"tokenizer {file} does not exist; name a tokenizer.json, or a dataset's or run's folder")
    return file


def _dataset(arguments: argparse.Namespace) -> str:
    named = arguments.on or next((name for name in arguments.tokenizers if (Path(name) / NAME).is_file()), None)
    if named is None:
        raise ConfigError("--on and --text (none) must name text to measure on; add --on DATASET or --text FILES")
    return named


def _dataset_texts(dataset: str, split: str) -> dict[str, Iterator[str]]:
    """By source, the documents' text."""
    manifest = Manifest.load(dataset)
    tokenizer = load_tokenizer(manifest.tokenizer_path)

    def texts(source: str) -> Iterator[str]:
        shards = tuple(shard for shard in manifest.shards if shard.source == source)
        for document in documents(replace(manifest, shards=shards), split):
            yield tokenizer.decode(document.tokens[1:].tolist(), skip_special_tokens=False)

    return {source: texts(source) for source in sorted({shard.source for shard in manifest.split(split)})}
