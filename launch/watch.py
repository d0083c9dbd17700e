"""`braid-watch RUN [--silence 5] [--start 45] -- COMMAND...` runs a training command and ends it when it hangs.

A rank whose heartbeat stays away for --silence minutes is stopped or dead; so is a run of which none has come --start minutes after
the command. Then the stacks of all ranks are written into RUN/stacks, all are ended, within a job on every node, and the exit
status is 77: start again. Otherwise it is the command's. Signals are passed on to the command.
"""

import sys
from pathlib import Path

# the checkout's root first, and not this folder, whose file names would shadow libraries
sys.path[:] = [
    str(Path(__file__).resolve().parents[1]),
    *(p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent),
]

import argparse

from launch.nodes.stacks import collect
from launch.nodes.watcher import Patience, Watcher


def main(argv: list[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="braid-watch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="the run folder")
    parser.add_argument("--silence", type=float, default=Patience.silence, metavar="MINUTES", help="without a heartbeat of a rank")
    parser.add_argument("--start", type=float, default=Patience.start, metavar="MINUTES", help="until the first heartbeat")
    parser.add_argument("--poll", type=float, default=Patience.poll, metavar="SECONDS", help="between looks")
    parser.add_argument("--collect", type=Path, help=argparse.SUPPRESS)
    words = sys.argv[1:] if argv is None else argv
    split = words.index("--") if "--" in words else len(words)
    settings, command = parser.parse_args(words[:split]), words[split + 1 :]
    if settings.collect:
        collect(settings.run, settings.collect)
        return 0
    if not command:
        parser.error("no command; write it behind --")
    return Watcher(settings.run, command, Patience(settings.silence, settings.start, settings.poll)).run()


if __name__ == "__main__":
    sys.exit(main())
