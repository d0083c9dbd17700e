"""Scaling fits against laws that are known: tables from published forms, and how often intervals hold the truth.

- `python benchmarks/scaling.py table FILE.csv`: a table from Chinchilla's published law, with noise
- `python benchmarks/scaling.py coverage`: 200 noisy tables, and how often 95 % intervals hold the truth
- `python benchmarks/scaling.py time`: one fit from all 4,500 starts, and a bootstrap of 1,000
- `python benchmarks/scaling.py pictures FOLDER`: those of docs/scaling.md
"""

import argparse
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from numpy import ndarray

from eval.scaling.config import ScalingConfig
from eval.scaling.fit import Fit, FitConfig, fit
from eval.scaling.forms import FORMS, Form, Points
from eval.scaling.intervals import Quantity, bootstrap, percentiles, profile, quantities
from eval.scaling.plots import draw
from eval.scaling.study import study
from eval.scaling.summary import summary
from eval.scaling.table import Runs

# theta of published fits
CHINCHILLA = np.array([*np.log([406.4, 410.7, 1.69]), 0.34, 0.28])
REPLICATION = np.array([*np.log([482.01, 2085.43, 1.8172]), 0.3478, 0.3658])
KAPLAN = np.array([0.076 / 0.103 * np.log(6.4e13), 0.076 / 0.103, np.log(1.8e13), 0.103])
REPEATED = np.array([6.255414, 7.3049974, 0.6254804, 0.3526596, 0.3526596, *np.log([15.387756, 5.309743])])

NOISE = 0.003
DRAWS = 200


def isoflop_design(budgets: int = 7, sizes: int = 7) -> tuple[ndarray, ndarray]:
    """Parameters and tokens of runs at 1e18 to 1e21 FLOPs, 6 N D, with 2 to 200 tokens per parameter."""
    C = np.repeat(np.geomspace(1e18, 1e21, budgets), sizes)
    M = np.tile(np.geomspace(2, 200, sizes), budgets)
    return np.sqrt(C / 6 / M), np.sqrt(C * M / 6)


def grid_design(sizes: int = 9, tokens: int = 9) -> tuple[ndarray, ndarray]:
    """Every size with every number of tokens."""
    N, D = np.meshgrid(np.geomspace(2e7, 5e9, sizes), np.geomspace(3e8, 1e11, tokens), indexing="ij")
    return N.ravel(), D.ravel()


def runs_of(
    form: Form, theta: ndarray, design: tuple[ndarray, ndarray], noise: float = 0.0, seed: int = 0, unique: ndarray | None = None
) -> Runs:
    """A table from a law; noise: standard deviation of log loss."""
    N, D = design
    U, C, n = D if unique is None else np.minimum(unique, D), 6 * N * D, len(N)
    log_loss = form.curve(theta[None], Points(*map(np.log, (N, D, C, U))))[0][0]
    loss = np.exp(log_loss + noise * np.random.default_rng(seed).standard_normal(n))
    return Runs(N, D, loss, C, U, np.full(n, np.nan), np.full(n, "all"), np.array([f"row {k}" for k in range(n)]), False)


def chinchilla_runs(noise: float = NOISE, seed: int = 0) -> Runs:
    return runs_of(FORMS["chinchilla"], CHINCHILLA, isoflop_design(), noise, seed)


def write_csv(runs: Runs, path: Path) -> None:
    rows = zip(runs.params, runs.tokens, runs.loss, strict=True)
    path.write_text("params,tokens,loss\n" + "".join(f"{N:.8g},{D:.8g},{loss:.8g}\n" for N, D, loss in rows))


def asked(found: Fit) -> list[Quantity]:
    """Both exponents of the form, those of compute-optimal sizes, and the loss at ten times the largest compute."""
    named = ("alpha", "beta", "N_exponent", "loss")
    return [q for q in quantities(found, [10 * float(found.runs.flops.max())]) if q.name.startswith(named)]


def coverage(draws: int, resamples: int = 0, say: Callable[[str], None] = lambda line: None) -> dict[str, dict[str, float]]:
    """Share of the draws whose 95 % interval holds the truth, by method and quantity; without resamples by profile alone."""
    held: dict[str, dict[str, list[bool]]] = {"profile": {}, **({"bootstrap": {}} if resamples else {})}
    for seed in range(draws):
        found = fit(FORMS["chinchilla"], chinchilla_runs(seed=seed), FitConfig(starts=50, seed=seed))
        vectors = bootstrap(found, resamples, seed) if resamples else None
        for quantity in asked(found):
            truth = quantity.report(float(quantity.of(CHINCHILLA[None])[0]))
            name = quantity.name.split("@")[0]
            held["profile"].setdefault(name, []).append(profile(found, quantity).holds(truth))
            if vectors is not None:
                held["bootstrap"].setdefault(name, []).append(percentiles(found, quantity, vectors).holds(truth))
        say(f"draw {seed + 1} of {draws}")
    return {method: {name: float(np.mean(each)) for name, each in found.items()} for method, found in held.items()}


def timings() -> dict[str, float]:
    """CPU seconds of one fit from all 4,500 starts to 240 noisy runs, as many as Chinchilla's, and of a bootstrap of 1,000."""
    runs = runs_of(FORMS["chinchilla"], CHINCHILLA, isoflop_design(16, 15), 0.005)
    start = time.process_time()
    found = fit(FORMS["chinchilla"], runs, FitConfig(starts=4500))
    fitted = time.process_time()
    bootstrap(found, 1000, 0)
    return {"starts": found.starts, "reached": found.reached, "fit": fitted - start, "bootstrap": time.process_time() - fitted}


def pictures(folder: Path) -> None:
    """One picture per approach and form; `other` learns from 1.5 times the compute what `attention` learns."""
    first = chinchilla_runs(seed=1)
    slower = CHINCHILLA + np.array([0.34 * 0.28, 0.28 * 0.34, 0, 0, 0]) / 0.62 * np.log(1.5)
    both = named(first, "attention", runs_of(FORMS["chinchilla"], slower, isoflop_design(), NOISE, 2), "other")
    repeated = runs_of(FORMS["data_constrained"], REPEATED, grid_design(), NOISE, 2, np.tile([3e8, 1e9, 3e9], 27))
    folder.mkdir(parents=True, exist_ok=True)
    for runs, forms, wanted in (
        (first, ["chinchilla", "over_training"], ["isoflop", "parametric", "over_training"]),
        (runs_of(FORMS["chinchilla"], CHINCHILLA, grid_design(), NOISE), ["chinchilla"], ["envelope"]),
        (both, ["chinchilla"], ["families"]),
        (repeated, ["chinchilla", "data_constrained"], ["repetition"]),
    ):
        found = study(["published"], runs, ScalingConfig(forms=forms, hold_out=0))
        print(summary(found))
        with TemporaryDirectory() as drawn:
            draw(found, Path(drawn))
            for name in wanted:
                shutil.copyfile(Path(drawn) / f"{name}.png", folder / f"scaling-{name.replace('_', '-')}.png")


def named(first: Runs, name: str, second: Runs, other: str) -> Runs:
    """Two tables as one, of two families."""
    arrays = [field.name for field in fields(Runs) if field.name != "has_flops"]
    both = {each: np.concatenate([getattr(first, each), getattr(second, each)]) for each in arrays}
    return Runs(**{**both, "family": np.repeat([name, other], [len(first), len(second)])}, has_flops=first.has_flops)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["table", "coverage", "time", "pictures"])
    parser.add_argument("file", nargs="?", type=Path, default=Path("runs.csv"))
    parser.add_argument("--draws", type=int, default=DRAWS)
    args = parser.parse_args()
    if args.what == "table":
        write_csv(chinchilla_runs(), args.file)
    elif args.what == "coverage":
        print(coverage(args.draws, 1000, lambda line: print(line, end="\r", file=sys.stderr)))
    elif args.what == "pictures":
        pictures(args.file)
    else:
        print(timings())
    return 0


if __name__ == "__main__":
    sys.exit(main())
