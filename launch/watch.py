"""`braid-watch RUN [--silence 5] [--start 45] -- COMMAND...` runs a training command and ends it when it hangs.

A rank whose heartbeat stays away for --silence minutes is stopped or dead; so is a run of which none has come --start minutes after
the command. Then the stacks of all ranks of this machine are written into RUN/stacks, all are ended, and the exit status is 77:
start again. Otherwise it is the command's. Signals are passed on to it.

Without a command it waits for a hang, prints where stacks belong, and exits with 77: slurm/pretrain.sbatch does the rest.
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
from launch.nodes.watcher import Patience, watch, watched


def main(argv: list[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="braid-watch", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="the run folder")
    parser.add_argument("--silence", type=float, default=Patience.silence, metavar="MINUTES", help="without a heartbeat of a rank")
    parser.add_argument("--start", type=float, default=Patience.start, metavar="MINUTES", help="until the first heartbeat")
    parser.add_argument("--poll", type=float, default=Patience.poll, metavar="SECONDS", help="between looks")
    parser.add_argument("--of", type=int, metavar="PID", help="without a command: end, with 0, when this process has")
    parser.add_argument("--collect", type=Path, help=argparse.SUPPRESS)
    words = sys.argv[1:] if argv is None else argv
    split = words.index("--") if "--" in words else len(words)
    settings, command = parser.parse_args(words[:split]), words[split + 1 :]
    if settings.collect:
        collect(settings.run, settings.collect)
        return 0
    patience = Patience(settings.silence, settings.start, settings.poll)
    if command:
        return watched(settings.run, command, patience)
    hang = watch(settings.run, patience, settings.of)
    if hang is None:
        return 0
    print(hang.stacks.resolve(), flush=True)
    return hang.status


if __name__ == "__main__":
    sys.exit(main())
