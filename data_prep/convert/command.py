"""`braid-data convert`: token files of other projects -> a dataset."""

import argparse
from pathlib import Path

from data_prep.convert.convert import ConvertConfig, Reader, convert
from data_prep.convert.datatrove import Datatrove
from data_prep.convert.megatron import Megatron
from data_prep.convert.nanogpt import NanoGPT
from llm.data.tokenizer import DOCUMENT_TOKEN, load_tokenizer
from llm.errors import ConfigError

KINDS = ("nanogpt", "megatron", "datatrove")


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """The command's arguments."""
    default = ConvertConfig()
    parser = commands.add_parser("convert", help="make a dataset from token files of nanoGPT, llm.c, Megatron or datatrove")
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help=".bin (nanoGPT, llm.c, Megatron) or .ds (datatrove)")
    parser.add_argument("--tokenizer", required=True, metavar="FILE", help="the tokenizer.json that made the ids")
    parser.add_argument("--out", required=True, type=Path, metavar="FOLDER")
    parser.add_argument(
        "--document-token", default=DOCUMENT_TOKEN, metavar="TOKEN", help="that parts documents in the files, or its id"
    )
    parser.add_argument(
        "--inside", choices=("refuse", "split"), default=default.inside, help="a document with that token in its midst"
    )
    parser.add_argument("--dtype", choices=("uint16", "uint32"), default="uint16", help="of nanoGPT's ids")
    parser.add_argument("--source", default=default.source)
    parser.add_argument("--licence", default=default.licence)
    parser.add_argument("--validation", type=float, default=default.validation, help="share of documents held out")
    parser.add_argument("--shard-tokens", type=int, default=default.shard_tokens)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Convert and print counts. Raises ConfigError, DataError."""
    tokenizer = load_tokenizer(arguments.tokenizer)
    word = arguments.document_token
    mark = int(word) if word.isdigit() else tokenizer.token_to_id(word)
    if mark is None:
        raise ConfigError(f"--document-token ({word}) must be a token of {arguments.tokenizer}, or its id; name the files' own")
    config = ConvertConfig(
        source=arguments.source,
        licence=arguments.licence,
        mark=mark,
        inside=arguments.inside,
        validation=arguments.validation,
        shard_tokens=arguments.shard_tokens,
    )
    manifest, counts = convert(_reader(arguments, mark), Path(arguments.tokenizer).read_bytes(), arguments.out, config)
    print(", ".join(f"{count:,} documents {name}" for name, count in sorted(counts.items())))
    print(f"{manifest.root}: {len(manifest.shards)} shards, manifest {manifest.hash[:12]}")


def _reader(arguments: argparse.Namespace, mark: int) -> Reader:
    files = tuple(arguments.files)
    if arguments.kind == "nanogpt":
        return NanoGPT(files, mark, arguments.dtype)
    if arguments.dtype != "uint16":
        raise ConfigError(f"--dtype ({arguments.dtype}) is for nanogpt, since {arguments.kind} says its own; leave it out")
    return Megatron(files) if arguments.kind == "megatron" else Datatrove(files)
