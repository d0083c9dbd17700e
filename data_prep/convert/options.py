"""What the commands `convert` and `index` both ask for."""

import argparse
from pathlib import Path

from data_prep.convert.ids import ConvertConfig
from llm.data.tokenizer import DOCUMENT_TOKEN, load_tokenizer
from llm.errors import ConfigError


def add_options(parser: argparse.ArgumentParser, source: str) -> None:
    """source: the default name."""
    default = ConvertConfig()
    parser.add_argument("--tokenizer", required=True, metavar="FILE", help="the tokenizer.json of the ids")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER")
    parser.add_argument("--document-token", default=DOCUMENT_TOKEN, metavar="TOKEN", help="that parts documents, or its id")
    parser.add_argument(
        "--inside", choices=("refuse", "split"), default=default.inside, help="a document with that token in its midst"
    )
    parser.add_argument("--source", default=source)
    parser.add_argument("--licence", default=default.licence)
    parser.add_argument("--weight", type=float, default=default.weight)
    parser.add_argument("--validation", type=float, default=default.validation, help="share of documents held out")
    parser.add_argument("--shard-tokens", type=int, default=default.shard_tokens)


def config_of(arguments: argparse.Namespace) -> tuple[bytes, ConvertConfig]:
    """The tokenizer.json, and the settings. Raises ConfigError, DataError."""
    tokenizer, word = load_tokenizer(arguments.tokenizer), arguments.document_token
    mark = int(word) if word.isdecimal() else tokenizer.token_to_id(word)
    if mark is None:
        raise ConfigError(f"--document-token ({word}) must be a token of {arguments.tokenizer}, or its id; name the files' own")
    config = ConvertConfig(
        source=arguments.source,
        licence=arguments.licence,
        weight=arguments.weight,
        mark=mark,
        inside=arguments.inside,
        validation=arguments.validation,
        shard_tokens=arguments.shard_tokens,
    )
    return Path(arguments.tokenizer).read_bytes(), config
