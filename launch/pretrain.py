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

from collections.abc import Sequence
from typing import Any

from launch.caches import use_node_cache
from launch.entry import enter
from launch.ranks import settle, without_local_rank
from llm.train.start import pretrain


def main(argv: list[str] | None = None) -> int:
    """The exit status: llm/train/exits.py says what each means."""
    return enter(train, without_local_rank(sys.argv[1:] if argv is None else argv), __doc__)


def train(words: Sequence[str]) -> int:
    settle()
    use_node_cache()
    return pretrain(words, evaluation).status


def evaluation(*run: Any) -> Any:
    """Of `train.evaluate`. Imported when it is asked for: that takes seconds, of every rank at every start."""
    from eval.scheduled import evaluation

    return evaluation(*run)


if __name__ == "__main__":
    sys.exit(main())
