"""`braid-pretrain FILE.yaml... key.path=value...` trains; `braid-pretrain runs/NAME` resumes.

The same under `deepspeed`, `torchrun`, `srun` and plain `python`, from any folder.
"""

import sys
from pathlib import Path

# the checkout's root first, and not this folder, whose file names would shadow libraries
sys.path[:] = [
    str(Path(__file__).resolve().parents[1]),
    *(p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent),
]

import os

from launch.caches import use_node_cache
from launch.ranks import settle, without_local_rank
from llm.errors import BraidError
from llm.train.config import RunConfig
from llm.train.run_folder import RunFolder
from llm.train.scheduled import Evaluation
from llm.train.start import pretrain
from llm.train.world import World


def evaluation(config: RunConfig, folder: RunFolder, world: World) -> Evaluation:
    """Imported for runs that evaluate: it would be a quarter of the files that every rank of every start opens."""
    from eval.scheduled import evaluation

    return evaluation(config, folder, world)


def main(argv: list[str] | None = None) -> int:
    """The exit status: llm/train/exits.py says what each means."""
    words = without_local_rank(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if words else 2
    try:
        settle()
        use_node_cache()
        return pretrain(words, evaluation).status
    except BraidError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        return error.status


if __name__ == "__main__":
    sys.exit(main())
