"""`braid-health RUN [-- START...]`: are all nodes fit for a run? Seconds, before the first step of each start.

Every node answers; its devices compute; disks are writable and large enough; clocks agree; code and versions are the same; no link
is slow. A node that fails is a line in RUN/bad-nodes.txt: host, time, reason.

START starts a command on every rank, such as `srun`, `deepspeed --hostfile FILE` or `torchrun` with its options; without one this
machine's ranks are asked. slurm/pretrain.sbatch does the two halves itself: a step of `--probe`, then `--judge`.

The exit status: 0, 78 when nodes are bad (start again without them), 2 when something must be mended that is no node's fault.
"""

import sys
from pathlib import Path

# the checkout's root first, and not this folder, whose file names would shadow libraries
sys.path[:] = [
    str(Path(__file__).resolve().parents[1]),
    *(p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent),
]

import argparse
from dataclasses import fields

from launch.nodes.limits import Limits

HELP = {
    "seconds": "that all nodes have to answer",
    "run_gb": "free in the run folder",
    "tmp_gb": "free in each node's temporary folder",
    "skew": "seconds that clocks may differ",
    "link": "bandwidth of a link at least, as a part of the median",
}


def main(argv: list[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="braid-health", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="the run folder")
    for field in fields(Limits):
        name = f"--{field.name.replace('_', '-')}"
        parser.add_argument(name, type=float, default=field.default, help=f"{HELP[field.name]} (%(default)g)")
    parser.add_argument("--ranks", type=int, default=None, help="on this machine; default: its GPUs, or 1")
    parser.add_argument("--hosts", default="", help="all that are asked, with commas; one that does not answer is bad")
    parser.add_argument("--probe", action="store_true", help="be a task of the check")
    parser.add_argument("--judge", action="store_true", help="what the tasks reported")
    words = sys.argv[1:] if argv is None else argv
    split = words.index("--") if "--" in words else len(words)
    # launchers add words of their own to those of a probe
    settings, more = parser.parse_known_args(words[:split])
    limits = Limits(**{field.name: getattr(settings, field.name) for field in fields(Limits)})
    if settings.probe:
        from launch.nodes.task import probe

        probe(settings.run, limits)
    if more:
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    from launch.nodes.check import check, judged

    hosts = [host for host in settings.hosts.split(",") if host]
    if settings.judge:
        return judged(settings.run, limits, hosts)
    return check(settings.run, limits, words[split + 1 :], settings.ranks, hosts)


if __name__ == "__main__":
    sys.exit(main())
