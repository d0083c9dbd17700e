"""2 nodes of 2 ranks train as 4 ranks on one machine do, whatever starts them."""

import sys

import pytest

from llm.data import Manifest
from tests.checkout import ROOT
from tests.slurm.cluster import Cluster
from tests.slurm.runs import Runs, undisturbed

pytestmark = [pytest.mark.multirank, pytest.mark.slow, pytest.mark.timeout(600)]
SHAPE = ("slurm.nodes=2", "slurm.gpus_per_node=2", "train.steps=20", "train.log_every=1")
# DeepSpeed's launcher in place of the script of ours: it calls srun, and gives ranks no place of their own
BY_DEEPSPEED = """#!/bin/bash
#SBATCH --nodes=2 --ntasks-per-node=2 --gres=gpu:2 --output=deepspeed.out
scontrol show hostnames | sed 's/$/ slots=2/' > hostfile
{python} -m deepspeed.launcher.runner --launcher slurm --no_ssh_check --hostfile hostfile --master_addr n1 \\
    {root}/launch/pretrain.py {words}
"""


@pytest.fixture(scope="module")
def losses(cluster: Cluster, manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """Of four ranks on this machine."""
    runs = Runs(cluster, manifest, tmp_path_factory.mktemp("four"))
    undisturbed(runs.folder, [*runs.words, *SHAPE[2:]], 4)
    return [record["loss"] for record in runs.records("undisturbed")]


@pytest.mark.parametrize("launcher", ["srun", "deepspeed"])
def test_submitted(runs: Runs, losses: list[float], launcher: str) -> None:
    runs.submit("run", *SHAPE, f"slurm.launcher={launcher}")
    runs.done("run")
    assert [record["loss"] for record in runs.records("run")] == losses


def test_a_warning_through_deepspeeds_launcher(runs: Runs) -> None:
    """Which a signal would kill, and its ranks with it."""
    job = runs.submit("run", *SHAPE[:2], "slurm.launcher=deepspeed")
    runs.reach("run", 20)
    runs.cluster.run("scancel", "--signal=USR1", "--batch", job)
    warned = runs.end_start("run", 0)
    assert (warned["status"], warned["verdict"]) == (75, "later")
    assert warned["saved"] >= 20


def test_deepspeeds_own_launcher_for_slurm(runs: Runs, losses: list[float]) -> None:
    words = " ".join([*runs.words, *SHAPE[2:], "name=run"])
    script = runs.folder / "job.sbatch"
    script.write_text(BY_DEEPSPEED.format(python=sys.executable, root=ROOT, words=words.replace("[", "'[").replace("]", "]'")))
    job = runs.cluster.run("sbatch", "--parsable", str(script), cwd=runs.folder).strip()
    state = runs.cluster.wait_for(job, "COMPLETED", "FAILED", timeout=200)
    assert state["JobState"] == "COMPLETED", (runs.folder / "deepspeed.out").read_text()
    assert [record["loss"] for record in runs.records("run")] == losses


def test_ranks_run_the_frozen_program(runs: Runs) -> None:
    job = runs.submit("run", *SHAPE, "slurm.sbatch=[--hold]")
    frozen = runs.path("run") / "code" / "llm" / "train" / "start.py"
    frozen.write_text(frozen.read_text().replace("parameters, ZeRO", "FROZEN parameters, ZeRO"))
    runs.cluster.run("scontrol", "release", job)
    runs.done("run")
    assert "FROZEN parameters" in runs.told("run")
