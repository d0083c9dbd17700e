"""What the mixers can learn, as published: a state for parity, a memory for associative recall. Minutes on two cores.

    python benchmarks/learning.py                        everything; report/learning.json and report/learning.png
    python benchmarks/learning.py --only parity          one task
    python benchmarks/learning.py --quick                a few steps of every architecture, no verdict

Parity (xLSTM, arXiv:2405.04517 sec. 4.1; Merrill et al., arXiv:2404.08819): sLSTM and LSTM find the rule and keep to it at five
times the length, attention and Mamba, whose decays are positive (arXiv:2411.12537), do not. Recall (Zoology, arXiv:2312.04927):
attention and a braid with one layer of it answer all queries; a recurrent stack is shown beside them.

Every architecture of a task has the same data, steps, learning rates and seeds; a run ends early only where it has solved the
task. An architecture's learning rate is the one of least validation loss, over seeds, at sizes that were trained.
"""

import argparse
import dataclasses
import itertools
import os
import statistics
import sys
import time
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.nn.utils import clip_grad_norm_

from benchmarks.learning_tasks import TASKS, Task
from eval.report import write_report
from llm.config import build
from llm.model import Decoder, ModelConfig, model_kinds
from llm.ops.cross_entropy import IGNORED
from llm.train.schedule import ScheduleConfig, learning_rate

MIXERS = {
    "parity": {
        "slstm": {"kind": "slstm", "heads": 1},
        "lstm": {"kind": "lstm", "heads": 1},
        "mamba": {"kind": "mamba"},
        "attention": {"kind": "attention", "heads": 4},
    },
    "recall": {
        "mamba2": {"kind": "mamba2", "heads": 4, "state": 16},
        "attention": {"kind": "attention", "heads": 2},
    },
}
# of each task: architecture -> the mixers of its layers
ARCHITECTURES = {
    "parity": {
        "slstm": ["slstm"],
        "lstm": ["lstm"],
        "attention": ["attention"],
        "attention, 2 layers": ["attention"] * 2,
        "mamba": ["mamba"],
        "mamba, 2 layers": ["mamba"] * 2,
    },
    "recall": {
        "mamba2 + mamba2": ["mamba2"] * 2,
        "attention + attention": ["attention"] * 2,
        "mamba2 + attention": ["mamba2", "attention"],
    },
}
SOLVERS = {"parity": ["slstm", "lstm"], "recall": ["attention + attention", "mamba2 + attention"]}
FAILING = [name for name in ARCHITECTURES["parity"] if name not in SOLVERS["parity"]]
RATES, SEEDS = (1e-3, 3e-3, 1e-2), (0, 1, 2)
SOLVED, CHANCE, FELL = 0.99, 0.6, 0.8
WARMUP, WINDOW, HELD_OUT = 50, 50, 1024


def model_of(task: Task, mixers: dict[str, dict], pattern: list[str]) -> ModelConfig:
    ffn = {"kind": "swiglu", "hidden": task.hidden} if task.hidden else "none"
    values = {
        "width": task.width,
        "depth": len(pattern),
        "vocab_size": task.vocab,
        "tie_embeddings": False,
        "layers": {name: {"mixer": mixers[name], "ffn": ffn} for name in set(pattern)},
        "pattern": pattern,
    }
    return build(ModelConfig, values, model_kinds(""))


def loss_of(model: Decoder, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Nats per label."""
    return model(tokens, labels_BT=labels).loss_sum / (labels != IGNORED).sum()


def train(model: Decoder, task: Task, rate: float, seed: int) -> list[float]:
    """The loss of every step. Data depends on the seed alone."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    schedule = ScheduleConfig("cosine", warmup=min(WARMUP, task.steps - 1), final_ratio=0.1)
    losses: list[float] = []
    for step in range(1, task.steps + 1):
        size = task.train[int(torch.randint(len(task.train), (), generator=generator))]
        loss = loss_of(model, *task.sample(task.batch, size, generator))
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(schedule, rate, step, task.steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if step % WINDOW == 0 and statistics.mean(losses[-WINDOW:]) < task.solved:
            break
    return losses


@torch.no_grad()
def validation_loss(model: Decoder, task: Task, held_out: int) -> float:
    """Mean over the sizes that were trained, of other data than training's."""
    generator = torch.Generator().manual_seed(1 << 20)
    batches = [task.sample(held_out // len(task.train) + 1, size, generator) for size in task.train]
    return statistics.mean(loss_of(model, *batch).item() for batch in batches)


@torch.no_grad()
def accuracy(model: Decoder, task: Task, size: int, held_out: int) -> float:
    """Share of right answers: of the last token's labels, or of all labels."""
    tokens, labels = task.sample(held_out, size, torch.Generator().manual_seed((1 << 21) + size))
    labels = labels[:, -1:] if task.last_only else labels
    right = model(tokens, last_only=task.last_only).logits.argmax(-1) == labels
    return right[labels != IGNORED].float().mean().item()


def run(job: tuple[str, str, float, int, dict, int, int]) -> dict:
    """One training run and its tests."""
    name, architecture, rate, seed, changes, held_out, threads = job
    torch.set_num_threads(threads)
    task, start = dataclasses.replace(TASKS[name], **changes), time.process_time()
    model = Decoder.create(model_of(task, MIXERS[name], ARCHITECTURES[name][architecture]), seed)
    losses = train(model, task, rate, seed)
    return {
        "task": name,
        "architecture": architecture,
        "learning_rate": rate,
        "seed": seed,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": len(losses),
        "loss_first": losses[0],
        "loss_last": statistics.mean(losses[-WINDOW:]),
        "validation_loss": validation_loss(model, task, held_out),
        "accuracy": {str(size): accuracy(model, task, size, held_out) for size in task.tests},
        "cpu_seconds": time.process_time() - start,
    }


def chosen(runs: list[dict], task: str, architecture: str) -> list[dict]:
    """The runs, one per seed, of the architecture's best learning rate."""
    ours = [r for r in runs if (r["task"], r["architecture"]) == (task, architecture)]
    rates = {r["learning_rate"] for r in ours}
    by_rate = {rate: [r for r in ours if r["learning_rate"] == rate] for rate in rates}
    best = min(by_rate.values(), key=lambda some: statistics.mean(r["validation_loss"] for r in some))
    return sorted(best, key=lambda r: r["seed"])


def verdicts(runs: list[dict], names: list[str]) -> list[tuple[bool, str]]:
    """(whether it holds, the sentence with its figure)."""
    found = []
    for name in names:
        sizes = [max(TASKS[name].tests)] if name == "parity" else TASKS[name].train
        where = f"{TASKS[name].size} {', '.join(map(str, sizes))}"
        for architecture in SOLVERS[name]:
            worst = min(r["accuracy"][str(size)] for r in chosen(runs, name, architecture) for size in sizes)
            sentence = f"{name}: {architecture} at {where} is right in {worst:.3f} with its worst seed (asked: >= {SOLVED})"
            found.append((worst >= SOLVED, sentence))
        for architecture in FAILING if name == "parity" else []:
            best = max(r["accuracy"][str(sizes[0])] for r in runs if r["architecture"] == architecture)
            left = max(r["loss_last"] / r["loss_first"] for r in chosen(runs, name, architecture))
            sentence = (
                f"{name}: {architecture} at {where} is right in {best:.3f} with its best rate and seed (asked: <= {CHANCE}), "
                f"though its training loss fell to {left:.2f} of the first or less (asked: <= {FELL})"
            )
            found.append((best <= CHANCE and left <= FELL, sentence))
    return found


def line(r: dict) -> str:
    scores = " ".join(f"{size}: {right:.3f}" for size, right in r["accuracy"].items())
    return (
        f"| {r['task']} | {r['architecture']} | {r['learning_rate']:g} | {r['seed']} | {r['steps']} | "
        f"{r['loss_first']:.3f} -> {r['loss_last']:.4f} | {r['validation_loss']:.4f} | {scores} | {r['cpu_seconds']:.0f} s |"
    )


def plot(runs: list[dict], names: list[str], path: Path) -> None:
    """Accuracy against size at the chosen learning rates: thin lines are seeds, thick ones their means."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5 * len(names), 4.2), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        task = TASKS[name]
        axes.set(xlabel=f"{task.size} (trained to {max(task.train)})", ylabel="accuracy", title=name, xscale="log")
        axes.set_xticks(task.tests, map(str, task.tests))
        axes.minorticks_off()
        for number, architecture in enumerate(ARCHITECTURES[name]):
            seeds = [list(r["accuracy"].values()) for r in chosen(runs, name, architecture)]
            for seed in seeds:
                axes.plot(task.tests, seed, lw=0.6, color=f"C{number}", alpha=0.7)
            axes.plot(task.tests, [statistics.mean(s) for s in zip(*seeds, strict=True)], color=f"C{number}", label=architecture)
        axes.axvline(max(task.train), color="gray", lw=0.8, ls=":")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(TASKS))
    parser.add_argument("--quick", action="store_true", help="a few steps, one learning rate and seed, no verdict")
    parser.add_argument("--out", type=Path, default=Path("report"), metavar="FOLDER")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    args = parser.parse_args()
    names, start = [args.only] if args.only else list(reversed(TASKS)), time.perf_counter()
    changes, held_out = ({"steps": 3, "batch": 4}, 8) if args.quick else ({}, HELD_OUT)
    rates, seeds = (RATES[:1], SEEDS[:1]) if args.quick else (RATES, SEEDS)
    jobs = [
        (name, architecture, rate, seed, changes, held_out, args.threads)
        for name in names
        for architecture, rate, seed in itertools.product(ARCHITECTURES[name], rates, seeds)
    ]
    runs = []
    print("| task | architecture | rate | seed | steps | training loss | validation | accuracy | CPU |\n" + "|---" * 9 + "|")
    # spawned, because a forked child inherits the threads' locks
    with get_context("spawn").Pool(min(args.processes, len(jobs))) as pool:
        for r in pool.imap_unordered(run, jobs):
            runs.append(r)
            print(line(r), flush=True)
    seconds = time.perf_counter() - start
    print(f"\nAt the best learning rates, {len(runs)} runs in {seconds:.0f} s:")
    for name in names:
        for architecture in ARCHITECTURES[name]:
            print(*map(line, chosen(runs, name, architecture)), sep="\n")
    found = [] if args.quick else verdicts(runs, names)
    report = {
        "settings": {
            "tasks": {name: dataclasses.asdict(dataclasses.replace(TASKS[name], sample=name, **changes)) for name in names},
            "architectures": {name: ARCHITECTURES[name] for name in names},
            "mixers": {name: MIXERS[name] for name in names},
            "optimizer": {"name": "AdamW", "weight_decay": 0.0, "clip": 1.0, "warmup": WARMUP, "cosine_to": 0.1},
            "held_out": held_out,
            "threads": args.threads,
            "processes": args.processes,
        },
        "runs": runs,
        "verdicts": [{"holds": holds, "sentence": sentence} for holds, sentence in found],
        "seconds": seconds,
    }
    plot(runs, names, args.out / "learning.png")
    print(write_report(args.out / "learning.json", report))
    for holds, sentence in found:
        print("holds:" if holds else "FAILS:", sentence)
    return 0 if all(holds for holds, _ in found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
