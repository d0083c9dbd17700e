"""`braid-generate RUN --prompt TEXT`: a text that begins with the prompt, streamed from a run folder or checkpoint."""

import sys
from pathlib import Path

# the checkout's root first, and not this folder, whose file names would shadow libraries
sys.path[:] = [
    str(Path(__file__).resolve().parents[1]),
    *(p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent),
]

import argparse

import torch

from llm.errors import BraidError
from llm.generate import Sampling, generate_text
from llm.train.load import load_model


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0, or 2 after an error that the user can cause."""
    parser = argparse.ArgumentParser(prog="braid-generate", description=__doc__)
    parser.add_argument("run", help="a run folder (runs/NAME) or a checkpoint")
    parser.add_argument("--prompt", default="", help="the text to go on from; nothing: a new document")
    for name, default in vars(Sampling()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"default {default}")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    words = parser.parse_args(argv)
    try:
        model, _, info = load_model(words.run, words.device)
        sampling = Sampling(words.tokens, words.temperature, words.top_p, words.seed)
        for piece in generate_text(model, info.tokenizer, words.prompt, sampling):
            print(piece, end="", flush=True)
        print()
    except BraidError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
