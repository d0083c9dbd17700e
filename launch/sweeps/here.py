"""A sweep on this machine: one run after the other, each evaluated when it has ended; what fails does not stop the others."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from launch.sweeps.config import Point
from launch.sweeps.folder import FINISHED, Sweep
from llm.train.exits import NAME, Outcome, read_outcome

ROOT = Path(__file__).resolve().parents[2]


def run_here(sweep: Sweep, points: Sequence[Point], console: Console) -> None:
    for number, point in enumerate(points, 1):
        console.rule(f"[bold]{number}/{len(points)} {point.name}", align="left")
        run = sweep.run(point)
        resuming = (run / "config.yaml").is_file()
        before = read_outcome(run / NAME)
        launcher = sweep.config.launcher or [sys.executable]
        status = subprocess.run(
            [*launcher, str(ROOT / "launch" / "pretrain.py"), *([str(run)] if resuming else sweep.words(point))], check=False
        ).returncode
        if status and read_outcome(run / NAME) == before:
            # refused before it trained, or killed: nobody else writes it down
            run.mkdir(parents=True, exist_ok=True)
            Outcome(status, 0, f"ended with status {status} before it trained", str(run)).write()
        if sweep.state(point).word == FINISHED and sweep.config.evaluate:
            evaluate = [sys.executable, str(ROOT / "eval" / "run.py"), "--model", str(run), *sweep.config.evaluate]
            subprocess.run(evaluate, check=False)
