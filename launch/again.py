"""For job scripts: does a run start, and does it start again?

`again.py begin RUN` prints `go START`, or `done` or `stop`. `again.py end RUN --start START --status STATUS` writes down how that
start ended and prints what comes next: `done`; `again SECONDS`, in this job; `later`, in another; or `stop`. Why is said on stderr.
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

from launch.jobs.folder import JobFolder
from launch.jobs.starts import Place, begin, end
from launch.restarts import Limits, Word


def main(argv: list[str] | None = None) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="again.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=("begin", "end"))
    parser.add_argument("run", type=Path)
    parser.add_argument("--start", default="")
    parser.add_argument("--status", type=int, default=0, help="of the step")
    parser.add_argument("--asked", default="", help="the signal that the job got, or `cancelled`")
    parser.add_argument("--max-restarts", type=int, default=Limits.restarts)
    parser.add_argument("--same-step", type=int, default=Limits.same_step)
    parser.add_argument("--max-requeues", type=int, default=None)
    given = parser.parse_args(sys.argv[1:] if argv is None else argv)
    folder, place, limits = JobFolder(given.run), Place.of(os.environ), Limits(given.max_restarts, given.same_step)
    if given.verb == "begin":
        word, sentence = begin(folder, place, limits, requeues=given.max_requeues)
        print(word or f"go {sentence}")
        why = sentence if word else f"start {sentence} on {place.hosts or 'this host'}"
    else:
        verdict = end(folder, given.start, given.status, given.asked or None, place, limits, given.max_requeues)
        print(f"{verdict.word} {verdict.pause:.0f}" if verdict.word is Word.AGAIN else verdict.word)
        why = verdict.why
    print(f"braid: {why}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
