"""`braid-data convert`: token files of other projects -> a dataset."""

import argparse
from pathlib import Path

from data_prep.convert.convert import Reader, convert, summary
from data_prep.convert.datatrove import Datatrove
from data_prep.convert.megatron import Megatron
from data_prep.convert.nanogpt import NanoGPT
from data_prep.convert.options import add_options, config_of
from llm.errors import ConfigError

KINDS = ("nanogpt", "megatron", "datatrove")


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command's arguments."""
    parser = commands.add_parser("convert", help="make a dataset from token files of nanoGPT, llm.c, Megatron or datatrove")
    parser.add_argument("kind", choices=KINDS, help="nanogpt is llm.c's too")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help=".bin (nanoGPT, llm.c, Megatron) or .ds (datatrove)")
    parser.add_argument("--dtype", choices=("uint16", "uint32"), help="of nanoGPT's ids (default: uint16)")
    add_options(parser, source="converted")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Convert and print counts. Raises ConfigError, DataError."""
    tokenizer_json, config = config_of(arguments)
    print(summary(*convert(_reader(arguments, config.mark), tokenizer_json, arguments.out, config)))


def _reader(arguments: argparse.Namespace, mark: int) -> Reader:
    files = tuple(arguments.files)
    if arguments.kind == "nanogpt":
        return NanoGPT(files, mark, arguments.dtype or "uint16")
    if arguments.dtype:
        raise ConfigError(f"--dtype ({arguments.dtype}) is for nanogpt, since {arguments.kind} says its own; leave it out")
    return Megatron(files) if arguments.kind == "megatron" else Datatrove(files)
