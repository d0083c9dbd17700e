"""`braid-import FOLDER OUT`: pretrained weights in Hugging Face format as config, weights and tokenizer to go on training from."""

import sys
from pathlib import Path

# the checkout's root first, and not this folder, whose file names would shadow libraries
sys.path[:] = [
    str(Path(__file__).resolve().parents[1]),
    *(p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent),
]

import argparse

from llm.errors import BraidError
from llm.export.imported import import_folder


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0, or 2 after an error that the user can cause."""
    parser = argparse.ArgumentParser(prog="braid-import", description=__doc__)
    parser.add_argument("folder", type=Path, help="with config.json, safetensors and tokenizer.json")
    parser.add_argument("out", type=Path)
    parser.add_argument("--stream", action="store_true", help="never hold the whole model: logits are not compared")
    parser.add_argument(
        "--allow-pickle", action="store_true", help="read *.bin where there are no safetensors: only of those you trust"
    )
    words = parser.parse_args(argv)
    try:
        origin = import_folder(words.folder, words.out, not words.stream, words.allow_pickle)
    except BraidError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    checked = f"logits differ by at most {max(origin['parity'].values()):.1e}" if "parity" in origin else "logits were not compared"
    print(f"{words.out}: {origin['model_type']}, {checked}; train on with")
    print(f"  pretrain.py {words.out}/model.yaml EXPERIMENT.yaml init_from={words.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
