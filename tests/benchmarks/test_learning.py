"""The learning benchmark: its verdicts, and the command end to end."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from benchmarks.learning import CLAIMS, Claim, verdicts
from eval.synthetic.config import ProbeConfig
from eval.synthetic.points import read_runs
from eval.synthetic.tasks import TASKS
from tests.checkout import ROOT

CLAIM = Claim(
    ProbeConfig(["parity"], ["solver", "failing", "a@1", "a@2"]),
    solved=[40, 200],
    solvers=["solver"],
    failing=["failing"],
    rising=[["a@1", "a@2"]],
)
RIGHT = {"solver": 0.995, "failing": 0.5, "a@1": 0.4, "a@2": 0.95}


def some_runs(right: dict[str, float], loss_last: float = 0.4) -> list[dict]:
    """Three seeds of every architecture at two learning rates, the second of them the better one in validation."""
    return [
        {
            "task": "parity",
            "architecture": name,
            "learning_rate": rate,
            "seed": seed,
            "loss_first": 0.7,
            "loss_last": loss_last,
            "validation_loss": rate,
            "state": 7,
            "accuracy": {str(size): right[name] if rate == 0.1 else 0.55 for size in TASKS["parity"].tests},
            "chance": {str(size): 0.51 for size in TASKS["parity"].tests},
        }
        for name in right
        for rate in (0.2, 0.1)
        for seed in (2, 0, 1)
    ]


def one(runs: list[dict], name: str, rate: float) -> dict:
    return next(r for r in runs if (r["architecture"], r["learning_rate"]) == (name, rate))


def missed(runs: list[dict], claim: Claim = CLAIM) -> list[str]:
    return [sentence.split()[1] for holds, sentence in verdicts(runs, claim) if not holds]


def test_verdicts_ask_solvers_for_every_seed_and_the_failing_for_none():
    runs = some_runs(RIGHT)
    assert len(verdicts(runs, CLAIM)) == 3
    assert missed(runs) == []
    # one seed of a solver falls short; one run of a failing one, at a rate that was not chosen, comes too far
    one(runs, "solver", 0.1)["accuracy"]["40"] = 0.98
    one(runs, "failing", 0.2)["accuracy"]["200"] = 0.62
    assert missed(runs) == ["solver", "failing"]
    assert missed(runs, replace(CLAIM, solved=[200])) == ["failing"]
    # to fail without having learned anything shows nothing
    assert missed(some_runs(RIGHT, loss_last=0.69)) == ["failing"]


def test_verdicts_ask_states_for_more_from_little_to_nearly_all():
    for wrong in ({"a@1": 0.96}, {"a@1": 0.55}, {"a@2": 0.85}, {"a@2": 0.3}):
        assert missed(some_runs({**RIGHT, **wrong})) == ["a@1"]
    assert missed(some_runs({**RIGHT, "a@1": 0.55}), replace(CLAIM, below=0.6)) == []


def test_the_failing_alone_get_a_feed_forward_part():
    claim = Claim(ProbeConfig(["parity"], ["lstm", "mamba"], hidden=0), [40], ["lstm"], ["mamba"], failing_hidden=8)
    assert {p.architecture: p.resolved.hidden for p in claim.points()} == {"lstm": 0, "mamba": 8}
    assert {p.resolved.hidden for p in replace(claim, failing_hidden=None).points()} == {0}


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_are_about_architectures_of_their_grids(name):
    claim = CLAIMS[name]
    named = {*claim.solvers, *claim.failing, *(name for names in claim.rising for name in names)}
    assert named <= set(claim.grid.layers)
    tests = claim.grid.tests or TASKS[claim.grid.tasks[0]].tests
    assert set(claim.solved) <= set(tests)
    claim.points()


@pytest.mark.slow
@pytest.mark.multirank
def test_a_quick_run_writes_tables_and_pictures(tmp_path):
    command = [sys.executable, "benchmarks/learning.py", "--quick", "--processes", "1", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    for name, claim in CLAIMS.items():
        runs = read_runs(tmp_path / name / "runs.jsonl")
        assert {r["architecture"] for r in runs} == set(claim.grid.layers)
        assert "![accuracy](accuracy.png)" in (tmp_path / name / "summary.md").read_text()
    assert json.loads((tmp_path / "verdicts.json").read_text())["versions"]["packages"]["torch"]
