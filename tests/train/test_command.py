"""The command itself: under the `deepspeed` launcher from another folder, and errors without a traceback."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.multirank
SCRIPT = Path(__file__).resolve().parents[2] / "launch" / "pretrain.py"
Words = Callable[..., list[str]]


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=150)


@pytest.mark.slow
@pytest.mark.timeout(320)
def test_deepspeed_on_two_ranks_then_python_goes_on(words: Words, tmp_path: Path) -> None:
    settings = words(
        "train.steps=4", "train.schedule.warmup=1", "parallel.zero=2", "train.validate_every=2", "train.tensorboard=true"
    )
    started = run(["deepspeed", "--num_accelerators", "2", str(SCRIPT), *settings], tmp_path)
    assert started.returncode == 0, started.stdout + started.stderr
    folder = tmp_path / "runs" / "tiny"
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert [record["step"] for record in records if "validation_loss" in record] == [2, 4]
    assert (folder / "report" / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "tokenizer.json").is_file()
    assert "packages" in json.loads((folder / "versions.json").read_text())
    assert list((folder / "tensorboard").iterdir())
    start = json.loads((folder / "report" / "start-up.jsonl").read_text())
    assert start["ranks"] == 2
    assert {"imports", "manifest", "groups", "load", "first step"} <= set(start["seconds"])
    assert all(0 < seconds < 150 for name, seconds in start["seconds"].items() if name != "kernels")
    assert f"start-up: imports {start['seconds']['imports']:.1f} s, " in started.stdout
    alone = run([sys.executable, str(SCRIPT), str(folder), "parallel.zero=1"], tmp_path)
    assert alone.returncode == 0, alone.stdout + alone.stderr
    assert f"resuming from {folder}/checkpoints/step-4" in alone.stdout
    assert "step 4 of 4" in alone.stdout


def test_errors_are_one_sentence(words: Words, tmp_path: Path) -> None:
    refused = run([sys.executable, str(SCRIPT), "--local_rank=0", *words("train.stepz=3")], tmp_path)
    assert refused.returncode == 2
    assert refused.stderr.startswith("error: ")
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "runs").exists()
