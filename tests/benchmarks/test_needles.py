"""The benchmark of needles: its sequences ask what they should, its verdicts can fail, and a quick run writes all it should."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.needles import ARCHITECTURES, FINDERS, GRID, ROLES, sample, verdicts
from llm.ops.cross_entropy import IGNORED

ROOT = Path(__file__).resolve().parents[2]


def test_the_label_is_what_followed_the_key():
    tokens, labels = sample(20, 32, torch.Generator().manual_seed(0))
    assert tokens.shape == labels.shape == (20, 31)
    assert (labels[:, :-1] == IGNORED).all()
    for row, answer in zip(tokens.tolist(), labels[:, -1].tolist(), strict=True):
        assert row[row.index(row[-1]) + 1] == answer
        assert answer in ROLES.values


def test_verdicts_can_fail():
    def of(*worst: float) -> list[bool]:
        runs = {
            name: {"details": {"cells": [{"first": {"value": 1.0}}, {"first": {"value": low}}]}}
            for name, low in zip(FINDERS, worst, strict=True)
        }
        return [holds for holds, _ in verdicts(runs)]

    assert of(0.95, 0.95) == [True, True]
    assert of(0.85, 0.95) == [False, True]


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
