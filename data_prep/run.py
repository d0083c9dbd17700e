"""`braid-data`: text -> cleaned -> tokenizer -> shards, manifest and data card; checking and showing datasets."""

import sys
from pathlib import Path

# the checkout's root first, and not this folder, whose file names would shadow libraries
HERE = Path(__file__).resolve().parent
sys.path[:] = [str(HERE.parent), *(p for p in sys.path if Path(p or ".").resolve() != HERE)]


import argparse
import os
from itertools import islice

from data_prep.prepare import prepare, progress_bars
from data_prep.recipe import load_recipe
from data_prep.verify import verify
from llm.data import Manifest, documents, load_tokenizer
from llm.errors import BraidError, ConfigError


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0, or 2 after an error that the user can cause."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except BraidError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="braid-data", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    prepare_ = commands.add_parser("prepare", help="make a dataset from a recipe; does nothing when it is there already")
    prepare_.add_argument("words", nargs="+", metavar="RECIPE.yaml|key.path=value")
    prepare_.add_argument("--replace", action="store_true", help="overwrite the dataset there, whatever made it")
    prepare_.set_defaults(run=_prepare)
    verify_ = commands.add_parser("verify", help="reread a dataset and check every byte")
    verify_.add_argument("dataset")
    verify_.set_defaults(run=_verify)
    show = commands.add_parser("show", help="print documents")
    show.add_argument("dataset")
    show.add_argument("n", nargs="?", type=int, default=3)
    show.add_argument("--split", default="train")
    show.set_defaults(run=_show)
    return parser


def _prepare(arguments: argparse.Namespace) -> None:
    recipe = load_recipe(arguments.words)
    manifest = prepare(recipe, arguments.replace)
    _summary(manifest)


def _verify(arguments: argparse.Namespace) -> None:
    manifest = Manifest.load(arguments.dataset)
    with progress_bars() as bars:
        verify(manifest, bars.track(manifest.shards, description="verify"))
    print(f"{len(manifest.shards)} shards of {manifest.root} are whole")


def _show(arguments: argparse.Namespace) -> None:
    if arguments.n < 0:
        raise ConfigError(f"n ({arguments.n}) is a number of documents; use 0 or more")
    manifest = Manifest.load(arguments.dataset)
    tokenizer = load_tokenizer(manifest.tokenizer_path)
    for k, document in enumerate(islice(documents(manifest, arguments.split), arguments.n)):
        print(f"--- document {k} · {document.source} · {len(document.tokens)} tokens · {document.text_bytes} bytes of text")
        print(tokenizer.decode(document.tokens[1:].tolist(), skip_special_tokens=False))


def _summary(manifest: Manifest) -> None:
    for split in sorted({shard.split for shard in manifest.shards}):
        total = manifest.totals(split)
        counts = f"{total.documents:,} documents, {total.tokens:,} tokens, {total.text_bytes:,} bytes of text"
        print(f"{split}: {counts} ({total.text_bytes / total.tokens:.3f} bytes/token)")
    print(f"{manifest.root}: {len(manifest.shards)} shards, manifest {manifest.hash[:12]}, card {manifest.root / 'CARD.md'}")


if __name__ == "__main__":
    sys.exit(main())
