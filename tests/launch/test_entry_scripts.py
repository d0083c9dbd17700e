"""`launch/pretrain.py` trains the same run however it is started, from a folder far from the checkout."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.bpe import train_bpe
from llm.data.manifest import Source
from llm.data.write import DatasetWriter
from llm.testing import free_port
from tests.checkout import ROOT, environment, run

pytestmark = [pytest.mark.multirank, pytest.mark.timeout(180)]

PRETRAIN = str(ROOT / "launch" / "pretrain.py")
# in float32, also where the machine computes in bfloat16: sums of one rank and of two are then alike
SETTINGS = ["data.sequence_length=32", "train.steps=4", "train.batch=4", "train.schedule.warmup=1", "train.log_every=1"]
SETTINGS += ["train.precision=fp32"]
SECONDS = 90


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """With a dataset for `configs/exp/tiny.yaml`."""
    folder = tmp_path_factory.mktemp("far")
    writer = DatasetWriter(folder / "data", train_bpe(["to be or not to be"] * 9, vocabulary=300), {"text": Source(1.0, "CC0-1.0")})
    rng = random.Random(0)
    for k in range(60):
        tokens = [rng.randrange(1, 256) for _ in range(rng.randrange(5, 80))]
        writer.add("text", "validation" if k % 6 == 0 else "train", tokens, text_bytes=len(tokens))
    writer.finish()
    return folder


def words(name: str) -> list[str]:
    return [PRETRAIN, "configs/exp/tiny.yaml", f"name={name}", "data.manifest=data", *SETTINGS]


def losses(folder: Path, name: str) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]


def under_slurm(folder: Path, name: str) -> None:
    """Two tasks with the environment that `srun` gives them, on one node."""
    shared = {"SLURM_NTASKS": "2", "SLURM_NNODES": "1", "SLURM_JOB_ID": str(free_port()), "SLURM_STEP_ID": "0"}
    shared |= {"SLURM_JOB_NODELIST": "localhost", "SLURM_STEP_NODELIST": "localhost"}
    tasks = []
    for rank in range(2):
        own = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)}
        tasks.append(
            subprocess.Popen(
                [sys.executable, *words(name)],
                cwd=folder,
                env=environment(**shared, **own),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        for task in tasks:
            output, _ = task.communicate(timeout=SECONDS)
            assert task.returncode == 0, output
    finally:
        for task in tasks:
            task.kill()


@pytest.fixture(scope="module")
def trained(folder) -> dict[str, list[float]]:
    """The losses of each way to start."""
    commands = {
        "python": [sys.executable, *words("python")],
        "deepspeed": ["deepspeed", "--num_accelerators", "2", "--master_port", str(free_port()), *words("deepspeed")],
        "torchrun": ["torchrun", "--nproc-per-node", "2", "--master-port", str(free_port()), *words("torchrun")],
    }
    for command in commands.values():
        done = run(command, folder, SECONDS)
        assert done.returncode == 0, done.stdout
    under_slurm(folder, "slurm")
    return {name: losses(folder, name) for name in (*commands, "slurm")}


@pytest.mark.timeout(400)
def test_every_way_to_start_draws_one_curve(trained):
    assert len(trained["python"]) == 4
    assert trained["deepspeed"] == trained["torchrun"] == trained["slurm"]
    assert trained["python"] == pytest.approx(trained["deepspeed"], rel=1e-5)


def test_a_finished_run_started_again_trains_nothing(folder, trained):
    again = run([sys.executable, PRETRAIN, "runs/python"], folder, SECONDS)
    assert again.returncode == 0, again.stdout
    assert "WARNING" not in again.stdout
    assert losses(folder, "python") == trained["python"]


def test_a_mistake_is_one_sentence_from_one_rank_and_starts_nothing(folder):
    command = ["torchrun", "--nproc-per-node", "2", "--master-port", str(free_port()), *words("wrong"), "train.bach=3"]
    done = run(command, folder, SECONDS)
    assert done.returncode != 0
    assert done.stdout.count("error: train.bach: Key 'bach' not in 'TrainConfig'. Did you mean: 'batch'") == 1
    assert not (folder / "runs" / "wrong").exists()


def test_a_run_of_another_config_is_not_touched(folder, trained):
    before = (folder / "runs" / "python" / "config.yaml").read_bytes()
    done = run([sys.executable, *words("python"), "model.width=64"], folder, SECONDS)
    assert done.returncode == 2
    assert "holds a run with another config (model.width: 32 -> 64" in done.stdout
    assert "or start a new one with name=ANOTHER" in done.stdout
    assert (folder / "runs" / "python" / "config.yaml").read_bytes() == before
