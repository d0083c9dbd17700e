"""A real run under `braid-supervise` and `deepspeed` loses its launcher, then a rank, and ends as an undisturbed one."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from llm.train.load import load_model

pytestmark = [pytest.mark.multirank, pytest.mark.slow, pytest.mark.timeout(400)]
LAUNCH = Path(__file__).resolve().parents[2] / "launch"
Words = Callable[..., list[str]]
STEPS = 600


def reached(run: Path) -> int:
    """The last step in its metrics."""
    lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").is_file() else []
    return json.loads(lines[-1])["step"] if lines and lines[-1].endswith("}") else 0


def wait_for(run: Path, step: int, supervisor: subprocess.Popen) -> None:
    while reached(run) < step:
        assert supervisor.poll() is None
        time.sleep(0.02)


def started(supervisor: subprocess.Popen, word: str, but: str = "\0") -> psutil.Process:
    """A process below it whose command line has the word."""
    below = [(process, " ".join(process.cmdline())) for process in psutil.Process(supervisor.pid).children(recursive=True)]
    return next(process for process, line in below if word in line and but not in line)


def test_it_ends_as_an_undisturbed_run(words: Words, tmp_path: Path) -> None:
    settings = words(f"train.steps={STEPS}", "train.checkpoint_every=50", "train.log_every=5", "parallel.zero=2")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    command = ["deepspeed", "--num_accelerators", "2", str(LAUNCH / "pretrain.py"), *settings]
    undisturbed = subprocess.run([*command, "name=whole"], env=environment, capture_output=True, text=True, timeout=150)
    assert undisturbed.returncode == 0, undisturbed.stderr
    wrapped = [sys.executable, str(LAUNCH / "supervise.py"), "--pause", "0.1", "--", *command, "name=hit"]
    run = tmp_path / "runs" / "hit"
    with (tmp_path / "said").open("w") as said:
        supervisor = subprocess.Popen(wrapped, env=environment, stdout=said, stderr=said)
        try:
            wait_for(run, 60, supervisor)
            started(supervisor, "deepspeed.launcher.launch").send_signal(signal.SIGKILL)
            wait_for(run, 300, supervisor)
            started(supervisor, "--local_rank=1", but="deepspeed.launcher").send_signal(signal.SIGKILL)
            assert supervisor.wait(timeout=200) == 0, (tmp_path / "said").read_text()
        finally:
            supervisor.terminate()
            supervisor.wait(timeout=60)
    told = [line for line in (tmp_path / "said").read_text().splitlines() if line.startswith("supervise: ")]
    print(*told, sep="\n")
    assert len(told) in (1, 2)
    assert "crashed" in told[-1]
    (a, _, info), (b, _, other) = load_model(tmp_path / "runs" / "whole"), load_model(run)
    assert info.step == other.step == STEPS
    for (name, x), y in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.equal(x, y), name
