"""`braid-data index`: WebDataset tars of others -> a dataset."""

import argparse
from pathlib import Path

from data_prep.convert.convert import summary
from data_prep.convert.index import index_arrays
from data_prep.convert.options import add_options, config_of
from data_prep.convert.texts import encode_texts
from llm.errors import ConfigError

TEXTS = ("txt", "text", "md", "json")


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command's arguments."""
    parser = commands.add_parser("index", help="make a dataset of WebDataset tars: ids are read where they are, text is encoded")
    parser.add_argument("tars", nargs="+", type=Path, metavar="TAR")
    parser.add_argument("--extension", default="npy", help=f"of the ids, or of text: {', '.join(TEXTS)} (default: npy)")
    parser.add_argument("--field", metavar="NAME", help="of the text in .json (default: text)")
    add_options(parser, source="indexed")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Index or encode, and print counts. Raises ConfigError, DataError."""
    if arguments.field and arguments.extension != "json":
        raise ConfigError(f"--field ({arguments.field}) is of --extension json, not {arguments.extension}; leave it out")
    tokenizer_json, config = config_of(arguments)
    rest = (arguments.tars, tokenizer_json, arguments.out, config, arguments.extension)
    print(summary(*(encode_texts(*rest, arguments.field or "text") if arguments.extension in TEXTS else index_arrays(*rest))))
