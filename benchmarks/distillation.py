"""A trained transformer becomes a hybrid: taught by distillation, beside one trained on text alone for as many tokens.

    python benchmarks/distillation.py [--folder FOLDER] [--steps N] [--check]     distillation.json and distillation.png there

The user's own commands, one after the other: a small teacher is trained on the standard library's sources, exported as a Llama,
imported again as it is and with two of its four layers replaced by Mamba-2; then `exp/distill-mixers.yaml` and
`exp/distill-logits.yaml`, and a run on text alone. `--check` fails unless the distilled hybrid ends nearer the teacher's
perplexity. Minutes on one core.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEACHER = """
include: [base.yaml]
name: teacher
model:
  width: 64
  depth: 4
  vocab_size: 1024
  layers: {a: {mixer: {kind: attention, heads: 4}, ffn: {kind: swiglu}}}
  pattern: [a]
"""
SHARED = [
    "data.manifest=stdlib",
    "data.sequence_length=128",
    "train.batch=16",
    "train.micro_batch=16",
    "train.precision=fp32",
    "train.tensorboard=false",
    "train.log_every=20",
    "train.validation_sequences=256",
    "train.schedule.warmup=20",
    "train.schedule.cooldown=0.5",
    "train.checkpoint_every=0",
]
REPLACED = "layers 1,2: mamba2"


def run(folder: Path, script: str, *words: str) -> None:
    """One of the user's commands, in `folder`; raises with its last words when it fails."""
    print(f"{script} {' '.join(words[:4])}", flush=True)
    done = subprocess.run([sys.executable, ROOT / script, *words], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{script} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def validation(folder: Path, name: str) -> list[tuple[int, float]]:
    """(tokens, nats) of a run."""
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return [(record["tokens"], record["validation_loss"]) for record in records if "validation_loss" in record]


def prepare(folder: Path, steps: int) -> None:
    """The teacher, and it as two imports."""
    (folder / "teacher.yaml").write_text(TEACHER)
    run(folder, "data_prep/run.py", "prepare", str(ROOT / "configs/data/stdlib.yaml"), "out=stdlib", "workers=1")
    run(folder, "launch/pretrain.py", "teacher.yaml", *SHARED, f"train.steps={steps}", "train.optimizer.lr=4e-3")
    run(folder, "launch/export_hf.py", "runs/teacher", "llama", "--to", "llama")
    run(folder, "launch/import_hf.py", "llama", "imports/base")
    run(folder, "launch/import_hf.py", "llama", "imports/hybrid", "--replace", REPLACED)


def train(folder: Path, mixers: int, logits: int) -> None:
    """The hybrid, taught and untaught, on as many tokens."""
    model = "imports/hybrid/model.yaml"
    rate = ["train.optimizer.lr=1e-3", "train.batch=4", "train.micro_batch=4", f"train.validate_every={logits // 2}"]
    run(folder, "launch/pretrain.py", model, "exp/distill-mixers.yaml", *SHARED, *rate, f"train.steps={mixers}")
    run(folder, "launch/pretrain.py", model, "exp/distill-logits.yaml", *SHARED, *rate, f"train.steps={logits}")
    plain = ["name=text", "init_from=imports/hybrid", f"train.steps={mixers + logits}"]
    run(folder, "launch/pretrain.py", model, "base.yaml", *SHARED, *rate, *plain)


def draw(found: dict[str, list[tuple[int, float]]], teacher: float, path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.axhline(math.exp(teacher), color="black", linestyle=":", label="the teacher")
    for name, points in found.items():
        axes.plot([tokens for tokens, _ in points], [math.exp(nats) for _, nats in points], marker="o", label=name)
    axes.set(xlabel="tokens", ylabel="perplexity on held-out documents", title=f"A hybrid ({REPLACED}) of a transformer")
    axes.legend()
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where to work, and to go on; a temporary folder unless given")
    parser.add_argument("--steps", type=int, default=800, help="of the teacher; hybrids take a fifth, each a quarter as large")
    parser.add_argument("--check", action="store_true")
    words = parser.parse_args()
    folder = (words.folder or Path(tempfile.mkdtemp())).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    mixers, logits = words.steps // 16, words.steps // 8
    if not (folder / "imports/hybrid").is_dir():
        prepare(folder, words.steps)
    train(folder, mixers, logits)
    teacher = validation(folder, "teacher")[-1][1]
    first = validation(folder, "distill-mixers")
    second = [(first[-1][0] + tokens, nats) for tokens, nats in validation(folder, "distill-logits")]
    found = {
        "taught: mixers, then next tokens": first + second,
        "trained on text alone": validation(folder, "text"),
    }
    draw(found, teacher, folder / "distillation.png")
    ends = {"teacher": teacher, **{name: points[-1][1] for name, points in found.items()}}
    (folder / "distillation.json").write_text(json.dumps({"ends": ends, "tokens": found}, indent=1) + "\n")
    for name, nats in ends.items():
        print(f"{name}: perplexity {math.exp(nats):.3f}")
    taught, untaught = (ends[name] - teacher for name in found)
    print(f"above the teacher, in nats: taught {taught:.4f}, on text alone {untaught:.4f} ({folder})")
    return int(words.check and not taught < untaught)


if __name__ == "__main__":
    sys.exit(main())
