"""`braid-supervise [--run runs/NAME] [--max-restarts 10] [--same-step 3] -- COMMAND...` runs a training command until it is done.

What crashed or hung starts again, after a pause that doubles from 5 seconds to 5 minutes, and goes on from its newest whole
checkpoint. It gives up, and says why, when so many restarts in a row end without a new checkpoint (--max-restarts), or starts at
the same step (--same-step), and at once on an error that someone must mend (2) and too many bad steps (76). SIGTERM, SIGINT and
SIGUSR1 stop the run with a checkpoint; the status is then 75, as when `train.max_minutes` are over: start again.
llm/train/exits.py has them all.

The command is `deepspeed ...`, `torchrun ...` or `python launch/pretrain.py ...`. With `--run runs/NAME` it may start ranks on
other hosts too (`deepspeed --hostfile`); what its starts did is then kept in that folder, and counts in later calls.
"""

import sys
from pathlib import Path

# the checkout's root first, and not this folder, whose file names would shadow libraries
sys.path[:] = [
    str(Path(__file__).resolve().parents[1]),
    *(p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent),
]

import argparse

from launch.jobs.folder import JobFolder
from launch.jobs.supervise import RunSupervisor
from launch.restarts import Limits
from launch.supervisor import Supervisor


def main(argv: list[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(
        prog="braid-supervise", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--max-restarts", type=int, default=Limits.restarts, metavar="N")
    parser.add_argument("--same-step", type=int, default=Limits.same_step, metavar="N")
    parser.add_argument("--pause", type=float, default=Limits.pause, metavar="SECONDS", help="before the first restart")
    parser.add_argument(
        "--grace", type=float, default=Limits.grace, metavar="SECONDS", help="for ranks that lost their launcher to save"
    )
    parser.add_argument("--run", type=Path, metavar="runs/NAME", help="the folder of the run that the command trains")
    words = sys.argv[1:] if argv is None else argv
    split = words.index("--") if "--" in words else len(words)
    settings, command = parser.parse_args(words[:split]), words[split + 1 :]
    if not command:
        parser.error("no command; write it behind --")
    limits = Limits(settings.max_restarts, settings.same_step, settings.pause, settings.grace)
    if settings.run is None:
        return Supervisor(command, limits).run()
    return RunSupervisor(command, limits, JobFolder(settings.run.absolute())).run()


if __name__ == "__main__":
    sys.exit(main())
