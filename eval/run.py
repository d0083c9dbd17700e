"""`braid-eval --model PATH [--model PATH] TASK[,TASK...] [key=value | TASK.key=value]`: evaluate models side by side.

PATH is a run folder, a checkpoint, or a Hugging Face folder. `kernels.linear=torch` and its like choose other kernels than the
run did. The same under `torchrun`, `deepspeed`, `srun` and plain `python`.

Without a model:

`braid-eval scaling TABLE... [key=value...]`: scaling laws of a table or a folder of runs.
`braid-eval probe [key=value...]`: what small models learn of synthetic tasks, from scratch.
"""

import sys
from pathlib import Path

# the checkout's root first, and not this folder, whose file names would shadow libraries
sys.path[:] = [
    str(Path(__file__).resolve().parents[1]),
    *(p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent),
]

import argparse
import os
from collections.abc import Callable

from eval.evaluate import evaluate
from eval.find import DTYPES, MODES, Reading
from eval.plan import read_plan
from eval.scaling.command import scaling
from eval.synthetic.command import probe
from eval.tasks import TASKS
from eval.world import world_of_ranks
from launch.ranks import settle, without_local_rank
from llm.errors import BraidError, ConfigError

# TASK -> what it does with the words that follow, without a model
WITHOUT_MODEL: dict[str, Callable[[list[str]], object]] = {"scaling": scaling, "probe": probe}


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0, or 2 after an error that the user can cause."""
    parser = argparse.ArgumentParser(prog="braid-eval", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", default=[], metavar="PATH", help="may be given several times")
    parser.add_argument("--mode", choices=MODES, default="parallel", help="recurrent: token by token from the state")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", help="cpu, cuda, ...; by default this rank's GPU where there is one")
    parser.add_argument("--out", type=Path, help="the folder of all reports, instead of each model's own")
    parser.add_argument("--again", action="store_true", help="also evaluate what was done already with the same settings")
    parser.add_argument(
        "--split", action="store_true", help="split every text over the ranks, instead of dealing texts out to them"
    )
    parser.add_argument("--trust-remote-code", action="store_true", help="code in a Hugging Face folder may run")
    tasks = ", ".join([*TASKS, *WITHOUT_MODEL])
    parser.add_argument("words", nargs="+", metavar="TASK", help=f"{tasks}, a suite (configs/eval/*.yaml), key=value")
    given = parser.parse_args(without_local_rank(sys.argv[1:] if argv is None else argv))
    try:
        ranks = settle().world_size
        if given.words[0] in WITHOUT_MODEL:
            if ranks > 1:
                raise ConfigError(f"{given.words[0]} runs once, not on {ranks} ranks; start it with plain python")
            WITHOUT_MODEL[given.words[0]]([*given.words[1:], *([f"out={given.out}"] if given.out else [])])
            return 0
        kernels = tuple(word for word in given.words if word.startswith("kernels."))
        plan = read_plan([word for word in given.words if word not in kernels])
        with world_of_ranks(given.device) as world:
            reading = Reading(world.device, given.dtype, given.mode, given.trust_remote_code, given.split, kernels)
            evaluate(given.model, plan, reading, world, given.again, given.out)
    except BraidError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
