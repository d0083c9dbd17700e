"""`braid-eval --run RUN TASK [key=value...]`: evaluate a run folder or checkpoint; the report goes to RUN/report/eval-TASK.json."""

import sys
from pathlib import Path

# the checkout's root first, and not this folder, whose file names would shadow libraries
sys.path[:] = [
    str(Path(__file__).resolve().parents[1]),
    *(p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent),
]

import argparse

import torch

from eval.tasks import TASKS, evaluate
from llm.errors import BraidError


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0, or 2 after an error that the user can cause."""
    parser = argparse.ArgumentParser(prog="braid-eval", description=__doc__)
    parser.add_argument("--run", required=True, help="a run folder (runs/NAME) or a checkpoint")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("task", metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("settings", nargs="*", metavar="key=value")
    arguments = parser.parse_args(argv)
    try:
        evaluate(arguments.run, arguments.task, arguments.settings, arguments.device)
    except BraidError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
