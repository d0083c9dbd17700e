"""A sweep as a job array on a real SLURM: two at a time, one fails, the table shows it, and `resume` runs it alone again."""

import csv
import json
import shutil
import sys
from pathlib import Path

import pytest

from eval.scaling.table import read_table
from launch.sweeps.folder import Sweep
from tests.checkout import ROOT
from tests.slurm.cluster import wait_until
from tests.slurm.runs import SITE, Runs, lines

pytestmark = [pytest.mark.multirank, pytest.mark.slow, pytest.mark.timeout(1200)]
BAD = "lr0.01-dataother"


def rows(folder: Path) -> dict[str, dict[str, str]]:
    return {row["run"]: row for row in csv.DictReader((folder / "table.csv").read_text().splitlines())}


def test_six_runs_two_at_a_time_of_which_one_fails(runs: Runs) -> None:
    shutil.copytree(runs.manifest.root, runs.folder / "other")
    shard = next(shard for shard in runs.manifest.shards if shard.split == "train")
    whole = (runs.folder / "other" / shard.path).read_bytes()
    # as long as it should be, so that nobody sees it before it is read
    (runs.folder / "other" / shard.path).write_bytes(whole[:1500] + bytes(len(whole) - 1500))
    words = [*(word for word in runs.words if not word.startswith("name=")), "train.steps=20", "train.checkpoint_every=10"]
    pairs = [(lr, seed) for lr in (0.01, 0.003) for seed in (0, 1)]
    points = [{"name": f"lr{lr}-seed{seed}", "words": [f"train.optimizer.lr={lr}", f"seed={seed}"]} for lr, seed in pairs]
    points += [{"name": BAD, "words": ["data.manifest=other"]}, {"name": "lr0.001", "words": ["train.optimizer.lr=0.001"]}]
    config = {"name": "sweep", "words": words, "points": points, "throttle": 2, "evaluate": ["perplexity"]}
    (runs.folder / "sweep.yaml").write_text(json.dumps(config))
    (runs.folder / "site.yaml").write_text(SITE + "gpus_per_node: 1\nhours: 1\n")

    def sweep(*given: str) -> str:
        command = [sys.executable, str(ROOT / "launch" / "sweep.py"), *given]
        return runs.cluster.run(*command, cwd=runs.folder, timeout=300)

    def ended() -> bool:
        return not runs.cluster.run("squeue", "--noheader")

    sweep("sweep.yaml", "--site", "site.yaml")
    folder = runs.folder / "runs" / "sweep"
    wait_until(ended, 700, lambda: runs.cluster.run("squeue"))
    with pytest.raises(AssertionError, match="ended with 1"):
        sweep("status", "runs/sweep")
    table = rows(folder)
    assert {name for name, row in table.items() if row["state"] == "done"} == {p["name"] for p in points} - {BAD}
    assert table[BAD]["state"] == "failed"
    assert shard.path in table[BAD]["said"]
    assert all(float(row["eval-perplexity/bits_per_byte"]) > 0 for name, row in table.items() if name != BAD)
    assert len(read_table(folder / "table.jsonl")) == 5
    starts = {point.name: lines(folder / point.name / "starts.jsonl") for point in Sweep.read(folder).points}
    spans = [(start["began"], start["ended"]) for each in starts.values() for start in each]
    assert max(sum(a <= began < b for a, b in spans) for began, _ in spans) == 2
    (runs.folder / "other" / shard.path).write_bytes(whole)
    assert "1 run(s)" in sweep("resume", "runs/sweep")
    wait_until(ended, 400, lambda: runs.cluster.run("squeue"))
    assert "6 done" in sweep("status", "runs/sweep")
    for point in points:
        again = lines(folder / point["name"] / "starts.jsonl")
        assert len(again) == len(starts[point["name"]]) + (point["name"] == BAD)
