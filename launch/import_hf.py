"""`braid-import FOLDER OUT`: pretrained weights in Hugging Face format as config, weights and tokenizer to go on training from."""

import sys
from pathlib import Path

# the checkout's root first, and not this folder, whose file names would shadow libraries
sys.path[:] = [
    str(Path(__file__).resolve().parents[1]),
    *(p for p in sys.path if Path(p or ".").resolve() != Path(__file__).resolve().parent),
]

import argparse

from llm.data import DOCUMENT_TOKEN
from llm.errors import BraidError, ConfigError, DataError
from llm.export.hybrid import parse, planned, replaced
from llm.export.imported import Change, import_folder, loaded
from llm.export.lazy import lazy_ratios, recency_ratios, tokens_of


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0, or 2 after an error that the user can cause."""
    parser = argparse.ArgumentParser(prog="braid-import", description=__doc__)
    parser.add_argument("folder", type=Path, help="with config.json, safetensors and tokenizer.json")
    parser.add_argument("out", type=Path)
    parser.add_argument("--stream", action="store_true", help="never hold the whole model: logits are not compared")
    parser.add_argument("--allow-pickle", action="store_true", help="read *.bin where there are no safetensors, if you trust them")
    parser.add_argument("--replace", help="'layers 2,3: mamba2; lazy 4: window=1024', or 'heads 8: mamba2'")
    parser.add_argument(
        "--lazy-text", type=Path, help="a text by which lazy layers and heads are found, no shorter than a sequence"
    )
    words = parser.parse_args(argv)
    try:
        change = hybridise(words.replace, words.folder, words.lazy_text) if words.replace else None
        origin = import_folder(words.folder, words.out, not words.stream, words.allow_pickle, change)
    except BraidError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    checked = f"logits differ by at most {max(origin['parity'].values()):.1e}" if "parity" in origin else "logits were not compared"
    print(f"{words.out}: {origin['model_type']}, {checked}; train on with")
    print(f"  pretrain.py {words.out}/model.yaml EXPERIMENT.yaml init_from={words.out}")
    if origin["document_token"] is None:
        print(f"its tokenizer lacks {DOCUMENT_TOKEN}, which opens every document here: before data are prepared with it, add it to")
        print(
            f"  {words.out}/tokenizer.json with an id that is not used, or with one more, by model.vocab_size and grow_vocab=true"
        )
    return 0


def hybridise(spec: str, folder: Path, text: Path | None) -> Change:
    """The change that `--replace` asks for. Raises ConfigError, DataError."""
    wanted = parse(spec)
    lazy, heads = any(one.lazy for one in wanted), any(one.heads for one in wanted)
    if (lazy or heads) and text is None:
        raise ConfigError(
            "--replace asks for lazy layers or heads, which are found by how the model reads a text; name one with --lazy-text"
        )
    if text is not None and not lazy and not heads:
        raise ConfigError(f"--lazy-text ({text}) has no effect without `lazy N` or `heads N` in --replace; leave it out")
    if text is not None and not text.is_file():
        raise DataError(f"--lazy-text ({text}) does not exist; name a text file")

    def change(config, weights):
        ratios, of_heads = {}, {}
        if text is not None:
            model, tokens = loaded(config, weights), tokens_of(folder / "tokenizer.json", text)
            ratios = lazy_ratios(model, tokens) if lazy else {}
            of_heads = recency_ratios(model, tokens) if heads else {}
        for what, found in (("lazy ratio by layer", ratios), ("recency ratio by (layer, key/value head)", of_heads)):
            if found:
                print(f"{what}: " + ", ".join(f"{place}: {ratio:.3f}" for place, ratio in found.items()))
        return replaced(config, weights, planned(wanted, ratios, of_heads))

    return change


if __name__ == "__main__":
    sys.exit(main())
