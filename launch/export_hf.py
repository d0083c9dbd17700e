"""`braid-export RUN [OUT]`: a run folder or checkpoint as a Hugging Face folder, verified; OUT is exports/NAME unless given."""

import sys
from pathlib import Path

# the checkout's root first, and not this folder, whose file names would shadow libraries
sys.path[:] = [
    str(Path(__file__).resolve().parents[1]),
    *(p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent),
]

import argparse
from collections.abc import Mapping

import torch
from torch import Tensor

from launch.provenance import provenance
from llm.errors import BraidError
from llm.export.folder import ExportOptions, export_folder
from llm.model import Decoder
from llm.train.config import RunConfig
from llm.train.load import CheckpointInfo, CheckpointWeights, find_checkpoint, load_model, what_it_is


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0, or 2 after an error that the user can cause."""
    parser = argparse.ArgumentParser(prog="braid-export", description=__doc__)
    parser.add_argument("run", help="a run folder (runs/NAME) or a checkpoint")
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("--to", default="auto", help="auto, remote, or an architecture of transformers; default auto")
    parser.add_argument("--replace", action="store_true", help="OUT may exist: it gives way once the new folder is verified")
    parser.add_argument("--chat-template", type=Path, help="a Jinja file that goes into the folder")
    parser.add_argument("--licence", help="the name that model hubs know it by, such as apache-2.0, for the model card")
    parser.add_argument("--gguf", action="store_true", help="add OUT/NAME.gguf for llama.cpp, where it knows the architecture")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights; default float32")
    parser.add_argument("--stream", action="store_true", help="never hold the whole model: weights are verified, not logits")
    words = parser.parse_args(argv)
    try:
        model, weights, config, info = opened(words.run, words.stream)
        out = words.out or Path("exports", config.name)
        metadata = provenance(config, info, words.licence)
        options = ExportOptions(words.to, words.replace, words.chat_template, words.gguf, words.dtype)
        found = export_folder(model, info.tokenizer, out, metadata, config.data.sequence_length, options, weights)
    except BraidError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    kind = "with its own code (remote)" if found["format"] == "remote" else f"as native {found['format']}"
    largest = found["parity"].get("largest_difference")
    checked = "weights verified" if largest is None else f"logits differ by at most {max(largest.values()):.1e}"
    print(f"{out}: {kind}, verified in transformers {found['versions']['transformers']}, {checked}")
    return 0


def opened(run: str, stream: bool) -> tuple[Decoder, Mapping[str, Tensor] | None, RunConfig, CheckpointInfo]:
    """(model, weights, config, checkpoint); with `stream` the model is on the meta device, else it holds its weights itself."""
    if not stream:
        model, config, info = load_model(run)
        return model, None, config, info
    checkpoint = find_checkpoint(Path(run))
    config, info = what_it_is(checkpoint)
    with torch.device("meta"):
        model = Decoder(config.model)
    return model, CheckpointWeights(checkpoint), config, info


if __name__ == "__main__":
    sys.exit(main())
