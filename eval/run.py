"""`braid-eval --run RUN TASK [key=value...]`: evaluate a run folder or checkpoint; the report goes to RUN/report/eval-TASK.json.

`braid-eval scaling TABLE... [key=value...]`: scaling laws of a table or a folder of runs; no model is needed.
"""

import sys
from pathlib import Path

# the checkout's root first, and not this folder, whose file names would shadow libraries
sys.path[:] = [
    str(Path(__file__).resolve().parents[1]),
    *(p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent),
]

import argparse

import torch

from eval.scaling.command import scaling
from eval.tasks import TASKS, evaluate
from llm.errors import BraidError, ConfigError

# TASK -> what it does with the words that follow, without a model
WITHOUT_MODEL = {"scaling": scaling}


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0, or 2 after an error that the user can cause."""
    parser = argparse.ArgumentParser(prog="braid-eval", description=__doc__)
    parser.add_argument("--run", help="a run folder (runs/NAME) or a checkpoint")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("task", metavar="TASK", help=", ".join([*TASKS, *WITHOUT_MODEL]))
    parser.add_argument("settings", nargs="*", metavar="key=value")
    arguments = parser.parse_args(argv)
    try:
        if arguments.task in WITHOUT_MODEL:
            WITHOUT_MODEL[arguments.task](arguments.settings)
        elif arguments.run is None:
            raise ConfigError(f"task ({arguments.task}) needs a model; give a run folder or a checkpoint with --run")
        else:
            evaluate(arguments.run, arguments.task, arguments.settings, arguments.device)
    except BraidError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
