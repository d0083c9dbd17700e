"""The benchmark of distillation: what it says holds, by the commands that users run."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.multirank
@pytest.mark.timeout(3700)
def test_a_taught_hybrid_ends_nearer_its_teacher(tmp_path):
    script = Path(__file__).resolve().parents[2] / "benchmarks/distillation.py"
    command = [sys.executable, str(script), "--check", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "distillation.png").stat().st_size > 10_000
