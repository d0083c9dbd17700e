"""The verbs of `braid-submit` on a run's folder, and jobs beside the training: evaluation, dataset."""

import json
from pathlib import Path

import pytest

from llm.train.exits import STOPPED
from tests.slurm.cluster import wait_until
from tests.slurm.runs import Runs

pytestmark = [pytest.mark.multirank, pytest.mark.slow, pytest.mark.timeout(1500)]
ONE_NODE = "slurm.nodes=1"


def test_from_submission_to_evaluation(runs: Runs) -> None:
    folder = str(runs.path("run"))
    job = runs.submit("run", "train.steps=100000")
    runs.reach("run", 20)
    assert f"job {job}" in runs.command("status", folder)
    assert "running" in runs.command("status", folder)
    shown = runs.command("logs", folder)
    assert f"start {job}-0 on n[1-2]" in shown
    assert "/100000  loss" in shown
    runs.command("cancel", folder)
    cancelled = runs.end_start("run", 0)
    assert (cancelled["status"], cancelled["asked"], cancelled["verdict"]) == (STOPPED, "cancelled", "stop")
    runs.cluster.wait_for(job, "CANCELLED")
    told = " ".join(runs.command("status", folder).split())
    assert "none in the queue" in told
    assert "-> stop" in told
    more = cancelled["saved"] + 20
    runs.command("resume", folder, f"train.steps={more}")
    runs.done("run")
    assert runs.records("run")[-1]["step"] == more
    job = runs.command("eval", folder, "perplexity", "slurm.ranks_per_node=1").strip()
    runs.cluster.wait_for(job, "COMPLETED", "FAILED")
    figures = json.loads((runs.path("run") / "report" / "eval-perplexity.json").read_text())["figures"]
    assert 0 < figures["bits_per_byte"]["value"] < 8, runs.told("run")


def test_a_bad_node_is_left_out_when_a_job_is_queued_again(runs: Runs) -> None:
    job = runs.submit("run", ONE_NODE)
    runs.reach("run", 20)
    node = json.loads(next(runs.path("run").glob("logs/*-0/began.json")).read_text())["hosts"]
    (runs.path("run") / "bad-nodes.txt").write_text(f"{node}\n")
    runs.cluster.run("scancel", "--signal=USR1", "--batch", job)
    assert runs.end_start("run", 0)["verdict"] == "later"
    runs.cluster.start_now(job)
    runs.done("run")
    assert {start["hosts"] for start in runs.starts("run")} == {"n1", "n2"}
    assert runs.cluster.job(job)["ExcNodeList"] == node
    assert f"--exclude={node}" in runs.command("resume", str(runs.path("run")), "train.steps=300", "--dry-run")


def test_a_dataset_is_prepared_as_a_job_that_is_queued_again(runs: Runs, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "out: dataset\nsources:\n  stdlib: {read: {kind: python-stdlib, tests: false}, licence: PSF-2.0}\n"
        "tokenizer: {vocabulary: 512}\nworkers: 2\n"
    )
    job = runs.command("data", "recipe.yaml", "--site", "site.yaml", "slurm.cpus_per_rank=2").strip()
    wait_until(lambda: bool(runs.cluster.ranks("n1", "prepare recipe.yaml")), 60, lambda: runs.told("data-recipe"))
    runs.cluster.run("scancel", "--signal=USR1", "--batch", job)
    runs.cluster.start_now(job)
    runs.cluster.wait_for(job, "COMPLETED", "FAILED", timeout=300)
    assert (tmp_path / "dataset" / "manifest.json").is_file(), runs.told("data-recipe")
    assert runs.cluster.job(job)["Restarts"] == "1"
