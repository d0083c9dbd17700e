"""`braid-sweep FILE.yaml... [key=value...]` runs a grid or list of runs: a folder each, a table of all.

    name: rates
    words: [configs/exp/tiny.yaml]
    grid: {train.optimizer.lr: [1e-3, 3e-3], seed: [0, 1]}
    throttle: 2
    evaluate: [perplexity]

On a cluster, with --site SITE or BRAID_SITE and `slurm.key=value` words as for `braid-submit`, they are tasks of a job array, at
most `throttle` at a time, and each is evaluated behind its own end. Without, they run here, one after the other.

    --dry-run                    print the runs, and for a cluster the script
    braid-sweep status SWEEP     the table, also SWEEP/summary.md, table.csv and, for `braid-eval scaling`, table.jsonl
    braid-sweep resume SWEEP     run what is missing, stopped or failed; no other
    braid-sweep cancel SWEEP     on a cluster; evaluations that wait stay in the queue
"""

import sys
from pathlib import Path

# the checkout's root first, and not this folder, whose file names would shadow libraries
sys.path[:] = [
    str(Path(__file__).resolve().parents[1]),
    *(p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent),
]

from launch.entry import enter
from launch.sweeps.command import run


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0, 1 when a run did not end well, 2 after an error that the user can cause."""
    return enter(run, sys.argv[1:] if argv is None else argv, __doc__)


if __name__ == "__main__":
    sys.exit(main())
