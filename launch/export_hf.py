"""`braid-export RUN [OUT]`: a run folder or checkpoint as a Hugging Face folder, verified; OUT is exports/NAME unless given."""

import sys
from pathlib import Path

# the checkout's root first, and not this folder, whose file names would shadow libraries
sys.path[:] = [
    str(Path(__file__).resolve().parents[1]),
    *(p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent),
]

import argparse

from launch.provenance import provenance
from llm.errors import BraidError
from llm.export.folder import ExportOptions, export_folder
from llm.train.load import load_model


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
    words = parser.parse_args(argv)
    try:
        model, config, info = load_model(words.run)
        out = words.out or Path("exports", config.name)
        metadata = provenance(config, info, words.licence)
        options = ExportOptions(words.to, words.replace, words.chat_template, words.gguf)
        found = export_folder(model, info.tokenizer, out, metadata, config.data.sequence_length, options)
    except BraidError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    kind = "with its own code (remote)" if found["format"] == "remote" else f"as native {found['format']}"
    largest = max(found["parity"]["largest_difference"].values())
    print(f"{out}: {kind}, verified in transformers {found['versions']['transformers']}, logits differ by at most {largest:.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
