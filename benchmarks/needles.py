"""Needles that small models were trained to find: heat maps over depth and length. Minutes on one core.

    python benchmarks/needles.py             report/needles.json and report/needles.png
    python benchmarks/needles.py --quick     a few steps of every architecture, no verdict

All are trained on the same sequences of token ids (eval/needles/tokens.py), one needle anywhere in noise, at the lengths that the
grid tests. Attention and a braid with one layer of it are asked to find it wherever it lies; retention with one head, whose state
falls to 1/e within 32 tokens, to find fewer the longer the haystack. docs/evaluation.md says what was
found, and what was not.
"""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Generator

from eval.models.braid import BraidModel
from eval.needles.grid import draw_grid
from eval.needles.tokens import NeedleTokensConfig, draw_tokens, needle_tokens, roles_of
from eval.report import write_report
from eval.subject import Subject
from eval.synthetic.task import Batch, Task
from eval.synthetic.training import model_of, train
from llm.model import Decoder
from llm.ops.cross_entropy import IGNORED
from llm.train.world import World

VOCABULARY, OPENING, SEED = 64, 0, 0
GRID = NeedleTokensConfig(lengths=[32, 64, 128, 256, 512], depths=6, samples=40, candidates=16, rows=40, keys=16, values=16, seed=1)
ROLES = roles_of(VOCABULARY, OPENING, GRID.keys, GRID.values)
MIXERS = {
    "attention": {"kind": "attention", "heads": 2},
    "mamba2": {"kind": "mamba2", "heads": 4, "state": 16},
    "retention": {"kind": "retention", "heads": 1, "value_factor": 1},
}
ARCHITECTURES = {
    "attention + attention": ["attention"] * 2,
    "mamba2 + attention": ["mamba2", "attention"],
    "retention + retention": ["retention"] * 2,
}
FINDERS = ["attention + attention", "mamba2 + attention"]
FADING = "retention + retention"
FULL, FALL = 0.9, 0.3


def sample(batch: int, length: int, generator: Generator) -> Batch:
    """(tokens, labels), both `[B, T]`: prompts of `length - 1` tokens, the last of which is the first key, then all other keys.
    Each is labelled with its value, and nothing else is labelled.
    """
    rows, answers = [], []
    for seed in torch.randint(1 << 31, (batch,), generator=generator).tolist():
        rng = np.random.default_rng(seed)
        # both ends, too, which the grid has
        depth = float(np.clip(rng.uniform(-0.1, 1.1), 0, 1))
        question = draw_tokens(rng, ROLES, length, depth, GRID.pairs, GRID.candidates)
        prompt, values = question.prompt.tolist(), [value for (value,) in question.candidates[: GRID.pairs]]
        rows.append(prompt + [prompt[prompt.index(value) - 1] for value in values[1:]])
        answers.append(values)
    labels = torch.full((batch, length - 2 + GRID.pairs), IGNORED)
    labels[:, -GRID.pairs :] = torch.tensor(answers)
    return torch.tensor(rows), labels


class OfIds(BraidModel):
    """A decoder of ids that spell no text."""

    def __init__(self, decoder: Decoder):
        self.decoder, self.window = decoder, None
        self.vocab_size, self.opening = VOCABULARY, OPENING


def run(name: str, steps: int, rate: float, grid: NeedleTokensConfig) -> dict:
    """Train one architecture and test it."""
    started = time.process_time()
    task = Task(sample, VOCABULARY, train=tuple(grid.lengths), width=64, hidden=0, batch=32, steps=steps, solved=1e-3)
    model = Decoder.create(model_of(task, MIXERS, ARCHITECTURES[name]), SEED)
    losses = train(model, task, rate, SEED)
    trained = time.process_time() - started
    found = needle_tokens(Subject(name, OfIds(model), Path("report"), {}, World(0, 1, torch.device("cpu"))), grid)
    return {
        "steps": len(losses),
        "loss_first": losses[0],
        "loss_last": float(np.mean(losses[-50:])),
        "train_cpu_seconds": trained,
        "cpu_seconds": time.process_time() - started,
        "details": found.details,
    }


def share_at(run: dict, length: int) -> float:
    """Of needles ranked first, over all depths."""
    return float(np.mean([cell["first"]["value"] for cell in run["details"]["cells"] if cell["length"] == length]))


def verdicts(runs: dict[str, dict]) -> list[tuple[bool, str]]:
    """(whether it holds, the sentence with its figure)."""
    found = []
    for name in FINDERS:
        worst = min(cell["first"]["value"] for cell in runs[name]["details"]["cells"])
        found.append((worst >= FULL, f"{name} ranks the needle first in {worst:.2f} of its worst cell (asked: >= {FULL})"))
    short, long = (share_at(runs[FADING], length) for length in (min(GRID.lengths), max(GRID.lengths)))
    sentence = (
        f"{FADING} does so in {short:.2f} at {min(GRID.lengths)} tokens and {long:.2f} at {max(GRID.lengths)} (asked: {FALL} less)"
    )
    found.append((short - long >= FALL, sentence))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2500, help="at most; a run ends early where it has solved the task")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--only", choices=ARCHITECTURES, action="append")
    parser.add_argument("--out", type=Path, default=Path("report"))
    parser.add_argument("--quick", action="store_true", help="a few steps; no verdict")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    grid = replace(GRID, samples=2) if asked.quick else GRID
    runs = {}
    for name in asked.only or ARCHITECTURES:
        runs[name] = run(name, 5 if asked.quick else asked.steps, asked.rate, grid)
        r, whole = runs[name], runs[name]["details"]["whole"]["first"]["value"]
        losses = f"loss {r['loss_first']:.3f} -> {r['loss_last']:.4f}"
        print(f"{name}: {r['steps']} steps, {losses}, ranks first {whole:.3f}, {r['cpu_seconds']:.0f} s", flush=True)
    write_report(asked.out / "needles.json", {"settings": vars(grid), "runs": runs})
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(runs), 6), layout="constrained")
    draw_grid(figure, {name: r["details"] for name, r in runs.items()})
    figure.savefig(asked.out / "needles.png", dpi=110)
    if asked.quick or len(runs) < len(ARCHITECTURES):
        return 0
    found = verdicts(runs)
    for holds, sentence in found:
        print("ok  " if holds else "FAIL", sentence)
    return 0 if all(holds for holds, _ in found) else 1


if __name__ == "__main__":
    sys.exit(main())
