"""The benchmark of needles: its sequences ask what they should, its verdicts can fail, and a quick run writes all it should."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.needles import ARCHITECTURES, FADING, FINDERS, GRID, ROLES, sample, verdicts
from llm.ops.cross_entropy import IGNORED

ROOT = Path(__file__).resolve().parents[2]


def test_labels_are_what_followed_each_key():
    tokens, labels = sample(20, 32, torch.Generator().manual_seed(0))
    n = GRID.pairs
    assert tokens.shape == labels.shape == (20, 30 + n)
    assert (labels[:, :-n] == IGNORED).all()
    for row, answers in zip(tokens.tolist(), labels[:, -n:].tolist(), strict=True):
        assert len(set(row[-n:])) == n
        assert [row[row.index(key) + 1] for key in row[-n:]] == answers
        assert set(answers) <= set(ROLES.values)


def test_verdicts_can_fail():
    def of(attention: float, braid: float, long: float) -> list[bool]:
        worst = {FINDERS[0]: (attention, 1.0), FINDERS[1]: (braid, 1.0), FADING: (long, 0.9)}
        cells = {
            name: [{"length": length, "first": {"value": value}} for length, value in zip((512, 32), values, strict=True)]
            for name, values in worst.items()
        }
        return [holds for holds, _ in verdicts({name: {"details": {"cells": found}} for name, found in cells.items()})]

    assert of(0.95, 0.95, 0.5) == [True, True, True]
    assert of(0.85, 0.95, 0.5) == [False, True, True]
    assert of(0.95, 0.95, 0.7) == [True, True, False]


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
