"""`braid-generate RUN --prompt TEXT [kernels.FAMILY=NAME...]`: a text that begins with the prompt, from a run or checkpoint.

Under `torchrun`, `deepspeed` or `srun` on several ranks, a long prompt is split among them.
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
from collections.abc import Iterator

import torch.distributed as dist

from launch.ranks import settle, without_local_rank
from llm.compile import check_compiler
from llm.errors import BraidError
from llm.generate import Sampling, generate_text
from llm.ops.routes import set_routes_of_run
from llm.parallel import Ranks
from llm.split import SplitDecoder
from llm.train.load import load_model
from llm.train.world import World


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0, or 2 after an error that the user can cause."""
    parser = argparse.ArgumentParser(prog="braid-generate", description=__doc__)
    parser.add_argument("run", help="a run folder (runs/NAME) or a checkpoint")
    parser.add_argument("--prompt", default="", help="the text to go on from; nothing: a new document")
    for name, default in vars(Sampling()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"default {default}")
    parser.add_argument("--device", help="cpu, cuda, ...; by default this rank's GPU where there is one")
    parser.add_argument("--compile", action="store_true", help="compile the step of one token first, for many of them")
    parser.add_argument("kernels", nargs="*", metavar="kernels.FAMILY=NAME", help="other kernels than the run's (docs/kernels.md)")
    words = parser.parse_intermixed_args(without_local_rank(sys.argv[1:] if argv is None else argv))
    if unknown := [word for word in words.kernels if not word.startswith("kernels.")]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    try:
        settle()
        world = World.from_environment()
        model, config, info = load_model(words.run, words.device or world.device)
        if words.compile:
            check_compiler("--compile", model.embedding.device)
        set_routes_of_run(config.kernels, model.embedding.device, words.kernels)
        sampling = Sampling(words.tokens, words.temperature, words.top_p, words.seed)
        sampling.check()
        if world.size == 1:
            write(generate_text(model, info.tokenizer, words.prompt, sampling, words.compile))
        else:
            dist.init_process_group("nccl" if model.embedding.is_cuda else "gloo")
            split = SplitDecoder(model, Ranks(world.rank, world.size))
            write(generate_text(split, info.tokenizer, words.prompt, sampling, words.compile), world.first)
            world.close()
    except BraidError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def write(pieces: Iterator[str], first: bool = True) -> None:
    """As they come, on the first rank."""
    for piece in pieces:
        if first:
            print(piece, end="", flush=True)
    if first:
        print()


if __name__ == "__main__":
    sys.exit(main())
