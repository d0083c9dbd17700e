"""Do the mixers learn what is published of them: a state for parity and arithmetic, a memory for associative recall?

    python benchmarks/learning.py                        everything; report/learning/: the runs, tables and pictures of each claim
    python benchmarks/learning.py --only parity          one claim; the same again goes on where it was stopped
    python benchmarks/learning.py --quick                a few steps of every architecture, no verdict

State (xLSTM, arXiv:2405.04517 sec. 4.1; Merrill et al., arXiv:2404.08819; Delétang et al., arXiv:2207.02098): sLSTM and LSTM find
the rules of parity, of sums and of arithmetic modulo 5 and keep to them at five times the length; attention, Mamba and retention,
whose decays are positive (arXiv:2411.12537), do not. Recall (Zoology, arXiv:2312.04927): attention and a braid with one layer of it
answer all queries; what a recurrent stack answers grows with its state. docs/probes.md has what was found, and what was not.

Every architecture of a claim has the same data, steps, learning rates and seeds; a run ends early only where it has solved the
task. An architecture's learning rate is the one of least validation loss, over seeds, at sizes that were trained.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from eval.report import write_report
from eval.synthetic.command import RUNS, write
from eval.synthetic.config import ProbeConfig
from eval.synthetic.points import Point, Run, work_off
from eval.synthetic.table import chosen

RATES = [1e-3, 3e-3, 1e-2]
SOLVED, FELL = 0.99, 0.8
# of the answer that is right most often, and what a share of 1,024 strays from it
NEAR_CHANCE = 0.1


@dataclass(frozen=True)
class Claim:
    """solvers: right at every size of `solved`, with their worst seed. failing: near chance at the largest size at every rate and
    seed, though their training loss fell. rising: groups of architectures that are righter the larger their state, from `below` to
    `above` at the last size of `solved`. failing_hidden: of a feed-forward part that the failing have in place of the grid's.
    """

    grid: ProbeConfig
    solved: list[int]
    solvers: list[str]
    failing: list[str] = field(default_factory=list)
    rising: list[list[str]] = field(default_factory=list)
    below: float = 0.5
    above: float = 0.9
    failing_hidden: int | None = None

    def points(self) -> list[Point]:
        """Raises ConfigError."""
        points = self.grid.points()
        if self.failing_hidden is None:
            return points
        more = {"hidden": self.failing_hidden}
        return [replace(p, changes=p.changes | more) if p.architecture in self.failing else p for p in points]


GROWING_STATE = {f"mamba2_{state}": {"kind": "mamba2", "heads": 4, "state": state} for state in (4, 8, 32)}
PAIRS = [1, 2, 4, 8, 16]
TWO_LAYERS = ["attention+attention", "mamba+mamba", "retention+retention"]
WITHOUT_STATE = ["attention", "mamba", "retention", *TWO_LAYERS]
FOUR_HEADS: dict[str, Any] = {"attention": {"heads": 4}}
# with a feed-forward part, LSTM goes wrong in more of the longer sequences after as many steps
SUMS: dict[str, Any] = {"mixers": FOUR_HEADS, "rates": [5e-3], "width": 64, "hidden": 0}
CLAIMS = {
    "recall": Claim(
        ProbeConfig(["recall"], ["mamba2+mamba2", "attention+attention", "mamba2+attention"], rates=RATES),
        solved=[2, 4, 8],
        solvers=["attention+attention", "mamba2+attention"],
    ),
    "recall_by_state": Claim(
        ProbeConfig(["recall"], list(GROWING_STATE), GROWING_STATE, rates=[1e-2], train=PAIRS, tests=PAIRS, steps=3000),
        solved=PAIRS,
        solvers=[],
        rising=[list(GROWING_STATE)],
    ),
    "modular_sums": Claim(
        ProbeConfig(["modular_sums"], ["slstm", "lstm", *TWO_LAYERS], steps=1000, **SUMS),
        solved=[200],
        solvers=["slstm", "lstm"],
        failing=TWO_LAYERS,
        failing_hidden=64,
    ),
    "modular_arithmetic": Claim(
        ProbeConfig(["modular_arithmetic"], ["slstm", "lstm", *TWO_LAYERS], steps=5000, **SUMS),
        solved=[201],
        solvers=["slstm", "lstm"],
        failing=TWO_LAYERS,
        failing_hidden=64,
    ),
    "parity": Claim(
        ProbeConfig(["parity"], ["slstm", "lstm", *WITHOUT_STATE], mixers=FOUR_HEADS, rates=RATES),
        solved=[200],
        solvers=["slstm", "lstm"],
        failing=WITHOUT_STATE,
    ),
}


def verdicts(runs: Sequence[Run], claim: Claim) -> list[tuple[bool, str]]:
    """(whether it holds, the sentence with its figure)."""
    (task,) = claim.grid.tasks
    found = []
    for name in claim.solvers:
        worst = min(r["accuracy"][str(size)] for r in chosen(runs, task, name) for size in claim.solved)
        where = ", ".join(map(str, claim.solved))
        sentence = f"{name} at {where} is right in {worst:.3f} with its worst seed (asked: >= {SOLVED})"
        found.append((worst >= SOLVED, sentence))
    last = str(claim.solved[-1])
    for name in claim.failing:
        best = max(r["accuracy"][last] for r in runs if r["architecture"] == name)
        most = chosen(runs, task, name)[0]["chance"][last] + NEAR_CHANCE
        left = max(r["loss_last"] / r["loss_first"] for r in chosen(runs, task, name))
        sentence = (
            f"{name} at {last} is right in {best:.3f} with its best rate and seed (asked: <= {most:.2f}), "
            f"though its training loss fell to {left:.2f} of the first or less (asked: <= {FELL})"
        )
        found.append((best <= most and left <= FELL, sentence))
    for names in claim.rising:
        means = [_mean(r["accuracy"][last] for r in chosen(runs, task, name)) for name in names]
        states = [chosen(runs, task, name)[0]["state"] for name in names]
        said = ", ".join(f"{mean:.3f} with {state:,} numbers" for mean, state in zip(means, states, strict=True))
        holds = means == sorted(means) and means[0] <= claim.below and means[-1] >= claim.above
        found.append((holds, f"{names[0]} ... at {last} is right in {said} (asked: rising, <= {claim.below} to >= {claim.above})"))
    return [(holds, f"{task}: {sentence}") for holds, sentence in found]


def _mean(values) -> float:
    values = list(values)
    return sum(values) / len(values)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(CLAIMS), action="append")
    parser.add_argument("--quick", action="store_true", help="a few steps, one learning rate and seed, no verdict")
    parser.add_argument("--out", type=Path, default=Path("report/learning"), metavar="FOLDER")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    found: list[tuple[bool, str]] = []
    for name in args.only or CLAIMS:
        claim, folder = CLAIMS[name], args.out / name
        if args.quick:
            claim = replace(claim, grid=replace(claim.grid, rates=claim.grid.rates[:1], seeds=1, steps=3, batch=4, held_out=8))
        runs = work_off(claim.points(), folder / RUNS, args.processes, args.threads)
        write(runs, folder)
        if not args.quick:
            found += verdicts(runs, claim)
    write_report(args.out / "verdicts.json", {"verdicts": [{"holds": holds, "sentence": sentence} for holds, sentence in found]})
    for holds, sentence in found:
        print("holds:" if holds else "FAILS:", sentence)
    return 0 if all(holds for holds, _ in found) else 1


if __name__ == "__main__":
    raise SystemExit(main())
