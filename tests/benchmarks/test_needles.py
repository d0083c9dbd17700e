"""The benchmark of needles: its sequences ask what they should, its verdicts can fail, and a quick run writes all it should."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.needles import ARCHITECTURES, FINDERS, FORGETTER, GRID, ROLES, sample, verdicts
from llm.ops.cross_entropy import IGNORED

ROOT = Path(__file__).resolve().parents[2]


def test_the_label_is_what_followed_the_key():
    tokens, labels = sample(20, 32, torch.Generator().manual_seed(0))
    assert tokens.shape == labels.shape == (20, 31)
    assert (labels[:, :-1] == IGNORED).all()
    for row, answer in zip(tokens.tolist(), labels[:, -1].tolist(), strict=True):
        assert row[row.index(row[-1]) + 1] == answer
        assert answer in ROLES.values


def runs_of(worst: float, far: float) -> dict:
    def cells(low: float) -> list:
        shares = [(depth, low if depth == 0 else 1.0) for depth in (0, 0.5, 1)]
        interval = {low: [low - 0.1, low + 0.1], 1.0: [0.9, 1.0]}
        return [{"length": 256, "depth": d, "first": {"value": v, "interval": interval[v]}} for d, v in shares]

    low = dict.fromkeys(FINDERS, worst) | {FORGETTER: far}
    return {name: {"details": {"cells": cells(value)}} for name, value in low.items()}


def test_verdicts_can_fail():
    assert [holds for holds, _ in verdicts(runs_of(0.95, 0.3))] == [True, True, True]
    assert [holds for holds, _ in verdicts(runs_of(0.85, 0.3))] == [False, False, True]
    assert [holds for holds, _ in verdicts(runs_of(0.95, 0.85))] == [True, True, False]


@pytest.mark.multirank
def test_a_quick_run_writes_the_report_and_the_picture(tmp_path):
    command = [sys.executable, "benchmarks/needles.py", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    runs = json.loads((tmp_path / "needles.json").read_text())["runs"]
    assert list(runs) == list(ARCHITECTURES)
    for run in runs.values():
        assert len(run["details"]["cells"]) == len(GRID.lengths) * GRID.depths
    assert (tmp_path / "needles.png").stat().st_size > 10_000
