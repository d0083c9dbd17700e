"""`braid-submit` away from a cluster: what it prints, writes and refuses."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from launch.jobs import slurm
from launch.jobs.folder import JobFolder
from launch.jobs.site import load_site
from launch.jobs.submit import submit
from launch.submit import main
from llm.config import to_yaml
from llm.data import Manifest
from llm.errors import ConfigError
from llm.train.run_folder import RunFolder
from llm.train.start import plan
from tests.slurm.runs import SITE
from tests.train.conftest import MODEL, TRAIN


@pytest.fixture
def words(manifest: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of a run, in a folder that commands are given in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("BRAID_SITE", raising=False)
    (tmp_path / "site.yaml").write_text(SITE)
    return [*MODEL, *TRAIN, f"data.manifest={manifest.root}"]


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """SLURM's commands as they are called; jobs 1, 2, ... and nothing in the queue."""
    called: list[tuple[str, ...]] = []

    def call(*command: str) -> str:
        called.append(command)
        return f"{sum(c[0] == 'sbatch' for c in called)}\n" if command[0] == "sbatch" else ""

    monkeypatch.setattr(slurm, "call", call)
    return called


def said(capsys: pytest.CaptureFixture[str], *given: str) -> tuple[int, str, str]:
    status = main(list(given))
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_a_dry_run_prints_what_submitting_writes_and_writes_nothing(words, queue, tmp_path, capsys) -> None:
    status, script, _ = said(capsys, "--site", "site.yaml", *words, "slurm.nodes=2", "slurm.gpus_per_node=2", "--dry-run")
    assert status == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["site.yaml"]
    assert queue == []
    status, jobs, _ = said(capsys, "--site", "site.yaml", *words, "slurm.nodes=2", "slurm.gpus_per_node=2")
    assert (status, jobs) == (0, "1\n")
    assert (tmp_path / "runs" / "tiny" / "pretrain.sbatch").read_text() == script
    assert queue[-1] == ("sbatch", "--parsable", str(tmp_path / "runs" / "tiny" / "pretrain.sbatch"))


def test_the_run_folder_holds_all_that_its_jobs_need(words, queue, tmp_path) -> None:
    assert submit(words, load_site("site.yaml"), after="afterany:5") == ["1"]
    folder = JobFolder(tmp_path / "runs" / "tiny")
    assert "--dependency=singleton,afterany:5" in queue[-1]
    assert plan([str(folder.path)])[0] == replace(plan(words)[0], runs=str(folder.path.parent))
    assert load_site(folder.site) == load_site("site.yaml")
    frozen = {path.name for path in folder.code.iterdir()}
    assert frozen == {"llm", "launch", "eval", "data_prep", "configs", "slurm", "git.json", "changes.diff"}
    state = json.loads((folder.code / "git.json").read_text())
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    assert state["commit"] == commit.stdout.strip()
    assert [job.job for job in folder.jobs()] == ["1"]


def test_versions_of_a_frozen_program_are_those_it_was_frozen_from(words, queue, tmp_path) -> None:
    """Also where the run folder lies in a repository, which has moved on."""
    submit(words, load_site("site.yaml"))
    code = tmp_path / "runs" / "tiny" / "code"
    program = "import json; from llm.train.run_folder import versions; print(json.dumps(versions()['git']))"
    environment = os.environ | {"PYTHONPATH": str(code)}
    command = [sys.executable, "-c", program]
    told = subprocess.run(command, cwd=code, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(told.stdout) == json.loads((code / "git.json").read_text())


def test_a_chain_is_as_many_jobs(words, queue, tmp_path, capsys) -> None:
    status, _, told = said(capsys, "--site", "site.yaml", *words, "--chain", "3")
    assert status == 0
    assert told.startswith("1, 2, 3 queued")
    assert "#SBATCH --no-requeue" in (tmp_path / "runs" / "tiny" / "pretrain.sbatch").read_text()


def test_until_it_has_begun_a_run_is_frozen_anew(words, queue, tmp_path) -> None:
    folder, mark = JobFolder(tmp_path / "runs" / "tiny"), "llm/mark"
    submit(words, load_site("site.yaml"))
    (folder.code / mark).touch()
    submit(words, load_site("site.yaml"))
    assert not (folder.code / mark).exists()
    (folder.code / mark).touch()
    (folder.logs / "1-0").mkdir()
    submit([str(folder.path), "train.steps=30"], load_site(folder.site))
    assert (folder.code / mark).exists()
    assert plan([str(folder.path)])[0].train.steps == 30


def test_the_precision_is_decided_where_it_starts_and_stays(words, queue, tmp_path) -> None:
    submit(words, load_site("site.yaml"))
    folder = RunFolder(tmp_path / "runs" / "tiny")
    config = folder.read_config()
    assert config.train.precision == "auto"
    started = replace(config, train=replace(config.train, precision="bf16"))
    assert folder.check_same(started) == []
    folder.config.write_text(to_yaml(started))
    submit(words, load_site("site.yaml"))
    assert folder.read_config().train.precision == "bf16"
    with pytest.raises(ConfigError, match=r"train\.precision: 'bf16' -> 'fp32'"):
        submit([*words, "train.precision=fp32"], load_site("site.yaml"))


def test_evaluations_and_datasets_are_jobs_too(words, queue, tmp_path, capsys) -> None:
    submit(words, load_site("site.yaml"))
    assert said(capsys, "eval", "runs/tiny", "perplexity", "--after", "afterok:1")[:2] == (0, "2\n")
    script = (tmp_path / "runs" / "tiny" / "eval.sbatch").read_text()
    assert f"WORDS=(--model {tmp_path}/runs/tiny perplexity)" in script
    assert "--dependency=singleton,afterok:1" in queue[-1]
    assert said(capsys, "data", "configs/data/stdlib.yaml", "--site", "site.yaml", "slurm.cpus_per_rank=4")[:2] == (0, "3\n")
    script = (tmp_path / "runs" / "data-stdlib" / "data_prep.sbatch").read_text()
    assert "WORDS=(configs/data/stdlib.yaml)" in script
    assert "gpu" not in script.partition("#----")[0]


def test_a_run_in_the_queue_is_not_submitted_twice(words, queue, monkeypatch, capsys) -> None:
    monkeypatch.setattr(slurm, "queued", lambda name: [slurm.Queued("12", "RUNNING", "1:00", "n1")])
    status, _, told = said(capsys, "--site", "site.yaml", *words)
    assert status == 2
    assert "is in the queue already (job 12, RUNNING); `braid-submit cancel` ends it" in told


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["name=x"], "--site (none) must name the cluster"),
        (["--site", "nowhere", "name=x"], "config file slurm/nowhere.yaml does not exist"),
        (["--site", "site.yaml"], "no config is given"),
        (["--site", "site.yaml", "--chian", "3", "name=x"], "--chian is no option of braid-submit"),
        (["--site", "site.yaml", "slurm.nodse=3", "name=x"], "nodse"),
        (["--site", "site.yaml", "--chain", "0", "name=x"], "slurm.chain (0) must be at least 1"),
        (["status"], "no run is given; name its folder"),
        (["resume", "runs/nowhere"], "runs/nowhere is no run folder"),
        (["eval", "runs/nowhere", "perplexity"], "runs/nowhere is no run folder"),
        (["data", "--site", "site.yaml"], "no recipe is given"),
    ],
)
def test_words_that_cannot_work(words, capsys, given: list[str], sentence: str) -> None:
    status, _, told = said(capsys, *given)
    assert status == 2
    assert sentence in told
    assert told.startswith("error: ")
    assert told.count("\n") == 1


def test_what_the_run_would_refuse_is_refused_before_it_is_queued(words, queue, tmp_path, capsys) -> None:
    status, _, told = said(capsys, "--site", "site.yaml", *words, "slurm.nodes=2", "train.batch=15")
    assert (status, queue) == (2, [])
    assert "train.batch (15) must hold a sequence for each of the ranks (16)" in told
    assert not (tmp_path / "runs").exists()


def test_away_from_a_cluster_one_sentence_says_so(words, monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    status, _, told = said(capsys, "--site", "site.yaml", *words, "slurm.gpus_per_node=1")
    assert status == 2
    assert "squeue is not here, as this is no host of a SLURM cluster" in told
    assert not (tmp_path / "runs").exists()
