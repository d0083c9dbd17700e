"""The learning benchmark: its tasks against plain Python, its verdicts, and the command end to end."""

import json
import subprocess
import sys

import pytest
import torch

from benchmarks.learning import ARCHITECTURES, FAILING, SOLVERS, chosen, verdicts
from benchmarks.learning_tasks import TASKS, parity, recall
from llm.ops.cross_entropy import IGNORED
from tests.checkout import ROOT


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_labels_of_parity_count_the_ones():
    for bits, labels in zip(*(x.tolist() for x in parity(16, 23, generator())), strict=True):
        assert labels == [sum(bits[: i + 1]) % 2 for i in range(23)]


@pytest.mark.parametrize(("pairs", "length", "vocab"), [(1, 4, 4), (2, 64, 64), (8, 64, 64), (16, 64, 64), (3, 13, 8)])
def test_answers_of_recall_are_those_of_a_dict(pairs, length, vocab):
    for tokens, labels in zip(*(x.tolist() for x in recall(32, pairs, generator(), length, vocab)), strict=True):
        shown = dict(zip(tokens[0 : 2 * pairs : 2], tokens[1 : 2 * pairs : 2], strict=True))
        asked = {i: label for i, label in enumerate(labels) if label != IGNORED}
        assert len(shown) == len(set(shown.values())) == pairs
        assert all(0 < key < vocab // 2 <= value < vocab for key, value in shown.items())
        assert {tokens[i]: label for i, label in asked.items()} == shown
        assert min(asked) >= 2 * pairs
        assert all(0 <= token < vocab for token in tokens)


def test_near_keys_are_asked_more_often_than_far_ones():
    _, labels = recall(2000, 1, generator())
    count = (labels != IGNORED).sum(0)[2::2]
    assert count[0] > 2 * count[3] > 0


def test_pairs_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="pairs \\(9\\) must be at most 7 with length 64 and vocab 16"):
        recall(1, 9, generator(), 64, 16)


def some_runs(right: dict[str, float], loss_last: float = 0.4) -> list[dict]:
    """Three seeds of every architecture at two learning rates, the first of them the better one in validation."""
    return [
        {
            "task": task,
            "architecture": name,
            "learning_rate": rate,
            "seed": seed,
            "loss_first": 0.7,
            "loss_last": loss_last,
            "validation_loss": rate,
            "accuracy": {str(size): right[name] if rate == 0.1 else 0.55 for size in TASKS[task].tests},
        }
        for task in TASKS
        for name in ARCHITECTURES[task]
        for rate in (0.2, 0.1)
        for seed in (2, 0, 1)
    ]


def test_verdicts_ask_solvers_for_every_seed_and_the_others_for_none():
    solvers = {name for names in SOLVERS.values() for name in names}
    right = {name: 0.995 if name in solvers else 0.5 for task in TASKS for name in ARCHITECTURES[task]}
    runs = some_runs(right)
    assert [r["seed"] for r in chosen(runs, "parity", "lstm")] == [0, 1, 2]
    assert {r["learning_rate"] for r in chosen(runs, "parity", "lstm")} == {0.1}
    assert all(holds for holds, _ in verdicts(runs, list(TASKS)))
    # one seed of a solver falls short; one run of a failing one, at a rate that was not chosen, comes too far
    next(r for r in runs if r["architecture"] == "lstm" and r["learning_rate"] == 0.1)["accuracy"]["200"] = 0.98
    next(r for r in runs if r["architecture"] == "mamba" and r["learning_rate"] == 0.2)["accuracy"]["200"] = 0.61
    missed = [sentence for holds, sentence in verdicts(runs, list(TASKS)) if not holds]
    assert [sentence.split(" at ")[0] for sentence in missed] == ["parity: lstm", "parity: mamba"]
    # to fail without having learned anything shows nothing
    stuck = verdicts(some_runs(right, loss_last=0.69), ["parity"])
    assert [holds for holds, _ in stuck] == [True] * len(SOLVERS["parity"]) + [False] * len(FAILING)


@pytest.mark.slow
@pytest.mark.multirank
def test_a_quick_run_writes_the_report_and_the_picture(tmp_path):
    command = [sys.executable, "benchmarks/learning.py", "--quick", "--processes", "1", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "learning.json").read_text())
    assert {(r["task"], r["architecture"]) for r in report["runs"]} == {(t, a) for t in TASKS for a in ARCHITECTURES[t]}
    for r in report["runs"]:
        assert list(r["accuracy"]) == list(map(str, TASKS[r["task"]].tests))
        assert done.stdout.count(f"| {r['task']} | {r['architecture']} |") == 2
    assert report["versions"]["packages"]["torch"]
    assert (tmp_path / "learning.png").stat().st_size > 10_000
