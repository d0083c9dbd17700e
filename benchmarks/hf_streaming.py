"""Export and import of a model larger than what they may hold in memory: peak of a process, seconds, GB/s.

    python benchmarks/hf_streaming.py [--gigabytes 4.5] [--shard-megabytes 500] [--folder FOLDER] [--check]

A Llama of that size lies on disk as shards of random numbers. It is imported and exported again, each in a process of its own,
built on the meta device. `--check` fails where a peak is above one input shard, one output shard and 1 GB.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
WIDTH, HIDDEN, VOCABULARY = 2048, 5632, 32000


def write_source(folder: Path, gigabytes: float, shard_bytes: int) -> None:
    """A Llama in Hugging Face format, float32, and a tokenizer."""
    import torch

    from data_prep.bpe import train_bpe
    from llm.config import build
    from llm.export import native
    from llm.export.weights import write_shards
    from llm.model import Decoder, ModelConfig, model_kinds

    a_layer = 4 * (2 * WIDTH * WIDTH + 2 * WIDTH * WIDTH // 8 + 3 * WIDTH * HIDDEN)
    depth = -int(-(gigabytes * 1e9 - 8 * VOCABULARY * WIDTH) // a_layer)
    layer = {"mixer": {"kind": "attention", "heads": 16, "kv_heads": 2}, "ffn": {"kind": "swiglu", "hidden": HIDDEN}}
    values = {"width": WIDTH, "depth": depth, "vocab_size": VOCABULARY, "layers": {"a": layer}, "pattern": ["a"]}
    config = build(ModelConfig, {**values, "tie_embeddings": False}, model_kinds(""))
    with torch.device("meta"):
        ours = Decoder(config).state_dict()
    shapes = {theirs: native.joined(theirs, [ours[name] for name in names]) for theirs, names in native.pairs("llama", config)}
    folder.mkdir()
    write_shards(folder, shapes, lambda name: torch.randn(shapes[name].shape) * 0.02, shard_bytes)
    written = native.ARCHITECTURES["llama"].write(config, 4096)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", **written}))
    (folder / "tokenizer.json").write_bytes(train_bpe(["def spam(eggs): return eggs"], vocabulary=300))


def step(name: str, folder: Path, shard_bytes: int) -> None:
    """Import or export in this process; prints seconds and peak bytes."""
    import torch

    from llm.export.folder import ExportOptions, export_folder
    from llm.export.imported import import_folder, read_imported
    from llm.model import Decoder

    torch.set_num_threads(1)
    start = time.perf_counter()
    if name == "import":
        import_folder(folder / "source", folder / "in", check_logits=False, shard_bytes=shard_bytes)
    else:
        config, weights = read_imported(folder / "in")
        with torch.device("meta"):
            model = Decoder(config)
        options = ExportOptions("llama", shard_bytes=shard_bytes)
        export_folder(model, folder / "in" / "tokenizer.json", folder / "out", {}, 4096, options, weights)
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.5)
    parser.add_argument("--shard-megabytes", type=int, default=500)
    parser.add_argument("--folder", type=Path, help="where to write; a temporary folder unless given")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--step", choices=("import", "export"), help=argparse.SUPPRESS)
    words = parser.parse_args()
    shard_bytes = words.shard_megabytes * 10**6
    if words.step:
        step(words.step, words.folder, shard_bytes)
        return 0
    scratch = Path(tempfile.mkdtemp(dir=words.folder))
    failed = False
    try:
        write_source(scratch / "source", words.gigabytes, shard_bytes)
        sizes = [path.stat().st_size for path in (scratch / "source").glob("*.safetensors")]
        total, bound = sum(sizes), 2 * max(sizes) + 10**9
        print(f"{total / 1e9:.2f} GB in {len(sizes)} shards; bound {bound / 1e9:.2f} GB", flush=True)
        for name in ("import", "export"):
            command = [
                sys.executable,
                __file__,
                "--step",
                name,
                "--folder",
                str(scratch),
                "--shard-megabytes",
                str(words.shard_megabytes),
            ]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
            speed = total / 1e9 / found["seconds"]
            print(f"{name}: peak {found['peak'] / 1e9:.2f} GB, {found['seconds']:.1f} s, {speed:.2f} GB/s", flush=True)
            failed |= found["peak"] > bound
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return int(failed and words.check)


if __name__ == "__main__":
    sys.exit(main())
