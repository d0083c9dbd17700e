"""`braid-export RUN [OUT]`: a run folder or checkpoint as a Hugging Face folder, verified; OUT is exports/NAME unless given."""

import sys
from pathlib import Path

# the checkout's root first, and not this folder, whose file names would shadow libraries
sys.path[:] = [
    str(Path(__file__).resolve().parents[1]),
    *(p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent),
]

import argparse
import json
from dataclasses import asdict
from typing import Any

from llm.errors import BraidError
from llm.export.folder import export_folder
from llm.train.checkpoint_files import PROGRESS
from llm.train.config import RunConfig
from llm.train.load import CheckpointInfo, load_model
from llm.train.run_folder import versions


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0, or 2 after an error that the user can cause."""
    parser = argparse.ArgumentParser(prog="braid-export", description=__doc__)
    parser.add_argument("run", help="a run folder (runs/NAME) or a checkpoint")
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--replace", action="store_true", help="OUT may exist: it gives way once the new folder is verified")
    words = parser.parse_args(argv)
    try:
        model, config, info = load_model(words.run)
        out = words.out or Path("exports", config.name)
        context = config.data.sequence_length
        found = export_folder(model, info.tokenizer, out, provenance(config, info), context, words.replace)
    except BraidError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    largest = max(found["parity"]["largest_difference"].values())
    print(f"{out}: verified in transformers {found['versions']['transformers']}, logits differ by at most {largest:.1e}")
    return 0


def provenance(config: RunConfig, info: CheckpointInfo) -> dict[str, Any]:
    """Where the model comes from: checkpoint, data, seeds, resolved config, versions and commit."""
    progress = json.loads((info.path / PROGRESS).read_text())
    trained = {"run": config.name, "step": info.step, "tokens_seen": info.tokens, "data": progress.get("data")}
    return {**trained, "config": asdict(config), "exported_with": versions()}


if __name__ == "__main__":
    sys.exit(main())
