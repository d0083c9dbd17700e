"""Tiny runs that are submitted to the tests' cluster, and what they leave."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

from llm.data import Manifest
from llm.testing import run_ranks
from llm.train.load import load_model
from tests.checkout import ROOT
from tests.slurm.cluster import Cluster, wait_until
from tests.train.conftest import MODEL, TRAIN

SUBMIT = str(ROOT / "launch" / "submit.py")
SITE = """
gpu_option: gres
environment: {OMP_NUM_THREADS: 1, MKL_NUM_THREADS: 1, DS_ACCELERATOR: cpu}
# seconds at each start, which test_nodes.py alone is about
health: {seconds: 0}
"""
# one rank on each of two nodes
SMALL = ("slurm.nodes=2", "slurm.gpus_per_node=1", "slurm.hours=1")
STEPS = 240


class Runs:
    """Of a test, in a folder of its own."""

    def __init__(self, cluster: Cluster, manifest: Manifest, folder: Path):
        self.cluster, self.manifest, self.folder = cluster, manifest, folder
        own = [f"train.steps={STEPS}", "train.checkpoint_every=50", "train.log_every=5", "train.precision=fp32"]
        self.words = [*MODEL, *TRAIN, *own, f"data.manifest={manifest.root}"]
        (folder / "site.yaml").write_text(SITE)

    def command(self, *words: str) -> str:
        """What `braid-submit` prints. It is awaited for long: it imports torch."""
        return self.cluster.run(sys.executable, SUBMIT, *words, cwd=self.folder, timeout=240)

    def submit(self, name: str, *words: str) -> str:
        """The id of the (first) job."""
        return self.command("--site", "site.yaml", *self.words, f"name={name}", *SMALL, *words).strip()

    def path(self, name: str) -> Path:
        return self.folder / "runs" / name

    def records(self, name: str) -> list[dict[str, Any]]:
        return lines(self.path(name) / "metrics.jsonl")

    def starts(self, name: str) -> list[dict[str, Any]]:
        return lines(self.path(name) / "starts.jsonl")

    def reach(self, name: str, step: int, timeout: float = 300) -> None:
        """Until a record of that step, or a later one, is there."""
        self.until(lambda: [r for r in self.records(name)[-1:] if r["step"] >= step], name, f"step {step}", timeout)

    def end_start(self, name: str, number: int, timeout: float = 300) -> dict[str, Any]:
        """Until the start of this number (from 0) has ended; its line."""
        self.until(lambda: len(self.starts(name)) > number, name, f"the end of start {number}", timeout)
        return self.starts(name)[number]

    def done(self, name: str, timeout: float = 400) -> None:
        self.until(lambda: self.starts(name)[-1:] and self.starts(name)[-1]["verdict"] == "done", name, "its end", timeout)

    def until(self, true: Callable[[], Any], name: str, what: str, timeout: float) -> None:
        wait_until(lambda: bool(true()), timeout, lambda: f"{what} of {name}:\n{self.told(name)}")

    def told(self, name: str) -> str:
        """All that its jobs and ranks printed."""
        files = sorted((self.path(name) / "logs").rglob("*.out"))
        return "\n".join(f"==> {file.name}\n{file.read_text(errors='replace')}" for file in files)

    def ranks(self, name: str, node: str) -> list[psutil.Process]:
        """The run's ranks on a node."""
        return self.cluster.ranks(node, f"{self.path(name)}/code/launch/pretrain.py")

    def positions(self, name: str) -> list[tuple[int, int]]:
        """(step, sequence) that each later start says it went on from, in order."""
        found = re.findall(r"resuming from \S+/step-(\d+), with sequence (\d+) of its data", self.told(name))
        return sorted((int(step), int(sequence)) for step, sequence in found)


def pretrain_here(rank: int, words: list[str]) -> float:
    """One rank of an undisturbed run."""
    from llm.train.start import pretrain

    return pretrain(words).step


def undisturbed(folder: Path, words: list[str], ranks: int) -> Path:
    """Its run folder."""
    run_ranks(pretrain_here, ranks, [*words, "name=undisturbed", f"runs={folder / 'runs'}"], timeout=280, connect=False)
    return folder / "runs" / "undisturbed"


def assert_same_weights(run: Path, other: Path, steps: int = STEPS) -> None:
    """To the bit."""
    (a, _, info), (b, _, info_b) = load_model(run), load_model(other)
    assert info.step == info_b.step == steps
    for (name, x), y in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.equal(x, y), name


def lines(path: Path) -> list[dict[str, Any]]:
    text = path.read_text() if path.is_file() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
