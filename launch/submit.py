"""`braid-submit --site SITE FILE.yaml... key.path=value... [slurm.key=value...]` queues a run on a SLURM cluster.

The run's config and its data are checked here and now; program and config are frozen into the run folder, which jobs run from.
SITE is a file, or a name in configs/slurm; BRAID_SITE is its default, and `slurm.` words change it: slurm.nodes=4 slurm.hours=12.

    --dry-run              print the script, write and submit nothing
    --chain N              N jobs, one after the other, where a site forbids requeueing
    --after DEPENDENCY     not before others: afterany:JOB

    braid-submit status RUN              jobs, the last starts and how they ended, where the run is
    braid-submit logs RUN [-f]           the newest output of rank 0 and of the job; -f follows it
    braid-submit cancel RUN              save, end, and do not start again
    braid-submit resume RUN [words]      go on, with more steps, another schedule or other `slurm.` settings if given
    braid-submit eval RUN TASK,... [words]      a job that evaluates it (slurm/eval.sbatch)
    braid-submit data RECIPE.yaml [words]       a job that prepares a dataset (slurm/data_prep.sbatch)
"""

import sys
from pathlib import Path

# the checkout's root first, and not this folder, whose file names would shadow libraries
sys.path[:] = [
    str(Path(__file__).resolve().parents[1]),
    *(p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent),
]

from launch.entry import enter
from launch.jobs.command import run


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0, or 2 after an error that the user can cause."""
    return enter(run, sys.argv[1:] if argv is None else argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
