"""`braid-data`: from text, or data of other projects, to a dataset; trying sources and tokenizers out; checking and showing."""

import sys
from pathlib import Path

# the checkout's root first, and not this folder, whose file names would shadow libraries
HERE = Path(__file__).resolve().parent
sys.path[:] = [str(HERE.parent), *(p for p in sys.path if Path(p or ".").resolve() != HERE)]


import argparse
import errno
import os
from itertools import islice

from data_prep import tokenizer_command
from data_prep.bars import progress_bars
from data_prep.card import untrained
from data_prep.convert import command as convert_command
from data_prep.convert import index_command
from data_prep.outcome import Outcome
from data_prep.prepare import prepare
from data_prep.recipe import load_recipe
from data_prep.report import REPORT
from data_prep.stages import STAGES
from data_prep.trial import tried
from data_prep.verify import verify
from llm.data import Manifest, documents, load_tokenizer
from llm.data.plan import plan_path, planned
from llm.errors import BraidError, ConfigError, did_you_mean

RIGHTS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP}
DISKS = {errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EDQUOT}


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
    except OSError as error:
        # what the system refuses; any other is a mistake of ours, and its traceback is wanted
        if error.errno not in RIGHTS | DISKS:
            raise
        name = error.filename or "a disk"
        print(f"error: {name} cannot be used ({error.strerror}); check its name, rights and room", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; prepare goes on from here when it is run again", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="braid-data", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    prepare_ = commands.add_parser("prepare", help="make a dataset from a recipe; does nothing when it is there already")
    prepare_.add_argument("words", nargs="+", metavar="RECIPE.yaml|key.path=value")
    prepare_.add_argument("--replace", action="store_true", help="overwrite the dataset there, whatever made it")
    prepare_.add_argument("--until", choices=STAGES[:-1], help="stop after this stage; the same command without it goes on")
    prepare_.set_defaults(run=_prepare)
    read = commands.add_parser("read", help="print a source's first documents, and what was dropped before them; writes nothing")
    read.add_argument("words", nargs="+", metavar="RECIPE.yaml|key.path=value|SOURCE|N")
    read.set_defaults(run=_read)
    verify_ = commands.add_parser("verify", help="reread a dataset and check every byte")
    verify_.add_argument("dataset")
    verify_.set_defaults(run=_verify)
    show = commands.add_parser("show", help="print documents")
    show.add_argument("dataset")
    show.add_argument("n", nargs="?", type=int, default=3)
    show.add_argument("--split", default="train")
    show.set_defaults(run=_show)
    plan = commands.add_parser(
        "plan", help="make the plan of bestfit packing; for datasets that runs cannot write to, or elsewhere"
    )
    plan.add_argument("dataset")
    plan.add_argument("sequence_length", type=int)
    plan.add_argument("--split", default="train")
    plan.set_defaults(run=_plan)
    for command in (tokenizer_command, convert_command, index_command):
        command.add_parser(commands)
    return parser


def _prepare(arguments: argparse.Namespace) -> None:
    found = prepare(load_recipe(arguments.words), arguments.replace, arguments.until)
    if isinstance(found, Outcome):
        print(found.figures(arguments.until))
    else:
        _summary(found)


def _read(arguments: argparse.Namespace) -> None:
    words = [word for word in arguments.words if "=" in word or word.endswith((".yaml", ".yml"))]
    counts = [int(word) for word in arguments.words if word.isdecimal()]
    names = [word for word in arguments.words if word not in words and not word.isdecimal()]
    recipe = load_recipe(words)
    for name in names:
        if name not in recipe.sources:
            raise ConfigError(f"source {name} is none of the recipe; {did_you_mean(name, recipe.sources)}")
    for name in names or recipe.sources:
        for line in tried(recipe, name, counts[-1] if counts else 3):
            print(line)


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


def _plan(arguments: argparse.Namespace) -> None:
    manifest = Manifest.load(arguments.dataset)
    plan = planned(manifest, arguments.split, arguments.sequence_length)
    path = plan_path(manifest.root, arguments.split, arguments.sequence_length)
    print(f"{path}: {len(plan):,} sequences of {arguments.sequence_length} tokens, {plan.padding:.4%} padding")


def _summary(manifest: Manifest) -> None:
    for split in sorted({shard.split for shard in manifest.shards}):
        total = manifest.totals(split)
        counts = f"{total.documents:,} documents, {total.tokens:,} tokens, {total.text_bytes:,} bytes of text"
        print(f"{split}: {counts} ({total.text_bytes / total.tokens:.3f} bytes/token)")
    for name in untrained(manifest):
        print(f"warning: source {name} has no document to train on; see what was dropped in {manifest.root / REPORT / 'drops.md'}")
    print(f"{manifest.root}: {len(manifest.shards)} shards, manifest {manifest.hash[:12]}, card {manifest.root / 'CARD.md'}")


if __name__ == "__main__":
    sys.exit(main())
