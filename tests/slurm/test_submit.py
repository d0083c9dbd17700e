"""`braid-submit` away from a cluster: what it prints, writes and refuses."""

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from launch.jobs import slurm
from launch.jobs.folder import JobFolder
from launch.jobs.script import job_name
from launch.jobs.site import load_site
from launch.jobs.submit import PRETRAIN, submit
from launch.submit import main
from launch.sweeps.array import active, cancel, submit_array
from launch.sweeps.config import SweepConfig
from launch.sweeps.folder import Sweep
from llm.config import to_yaml
from llm.data import Manifest
from llm.errors import ConfigError
from llm.train import owner
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


def test_a_datasets_job_runs_the_program_of_its_submission_and_has_a_status(words, queue, tmp_path, monkeypatch, capsys) -> None:
    given, folder = ["data", "configs/data/stdlib.yaml", "--site", "site.yaml"], JobFolder(tmp_path / "runs" / "data-stdlib")
    assert said(capsys, *given)[0] == 0
    (folder.code / "mark").touch()
    assert said(capsys, *given)[0] == 0
    assert not (folder.code / "mark").exists()
    (folder.logs / "2.out").write_text("prepared\n")
    status, told, _ = said(capsys, "status", "runs/data-stdlib")
    assert status == 0
    assert "none in the queue" in told
    assert "checkpoint" not in told
    assert said(capsys, "logs", "runs/data-stdlib")[0] == 0
    monkeypatch.setattr(slurm, "queued", lambda name: [slurm.Queued("2", "RUNNING", "1:00", "n1")])
    told = said(capsys, "status", "runs/data-stdlib")[1]
    assert "data_prep running, 1:00 left, n1" in " ".join(told.split())
    status, _, told = said(capsys, *given)
    assert status == 2
    assert "is in the queue already (job 2, RUNNING); wait for its end, as its program would change" in told
    assert said(capsys, "resume", "runs/data-stdlib")[0] == 2


def test_an_evaluation_runs_the_program_that_trained(words, queue, tmp_path, capsys) -> None:
    """Or today's, where no job did."""
    run = RunFolder(tmp_path / "runs" / "tiny")
    submit(words, load_site("site.yaml"))
    for mark, kept in ((JobFolder(run.path).code / "mark", True), (JobFolder(run.path).code / "other", False)):
        mark.touch()
        assert said(capsys, "eval", "runs/tiny", "bigram")[0] == 0
        assert mark.exists() == kept
        JobFolder(run.path).script("pretrain").unlink(missing_ok=True)


def test_later_commands_work_where_the_run_was_submitted(words, queue, manifest, tmp_path, monkeypatch, capsys) -> None:
    """Relative paths of its config begin there."""
    (tmp_path / "data").symlink_to(manifest.root)
    assert said(capsys, "--site", "site.yaml", *words, "data.manifest=data", "slurm.gpus_per_node=1")[0] == 0
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    for verb, script in ((["resume", "../runs/tiny", "train.steps=30"], "pretrain"), (["eval", "../runs/tiny", "bigram"], "eval")):
        status, _, told = said(capsys, *verb)
        assert status == 0, told
        assert f"#SBATCH --chdir={tmp_path}\n" in JobFolder(tmp_path / "runs" / "tiny").script(script).read_text()
    assert Path.cwd() == elsewhere
    # a copy of the run on another machine
    jobs = tmp_path / "runs" / "tiny" / "jobs.jsonl"
    jobs.write_text(jobs.read_text().replace(str(tmp_path), "/nowhere"))
    assert JobFolder(tmp_path / "runs" / "tiny").workplace == elsewhere


def test_a_run_that_is_trained_outside_of_the_queue_is_not_submitted(words, queue, tmp_path, monkeypatch, capsys) -> None:
    run = tmp_path / "runs" / "tiny"
    # a process that lives, and renews nothing
    monkeypatch.setattr(owner, "OVER", 0.1)
    run.mkdir(parents=True)
    (run / owner.NAME).write_text(
        json.dumps(asdict(replace(owner.Owner.this(run), pid=os.getppid(), began=owner.began(os.getppid()))))
    )
    status, _, told = said(capsys, "--site", "site.yaml", *words, "slurm.gpus_per_node=1")
    assert status == 1
    assert f"runs/tiny is being trained by process {os.getppid()} on " in told
    assert [path.name for path in run.iterdir()] == [owner.NAME]


@pytest.mark.parametrize(
    "place", ["a=b, c", *(pytest.param(name, marks=pytest.mark.slow) for name in ("a=b", "a,b", "a b", "a|b"))]
)
def test_names_that_are_lists_or_settings_elsewhere_work(place: str, words, queue, tmp_path, monkeypatch, capsys) -> None:
    # `=` is for folders above alone
    name = place.replace("=", "+")
    there = [*words, f"runs={tmp_path}/{place}", f"name={name}"]
    assert said(capsys, "--site", "site.yaml", *there, "slurm.gpus_per_node=1")[0] == 0
    run = f"{tmp_path}/{place}/{name}"
    for verb in (["status", run], ["resume", run, "train.steps=30"], ["eval", run, "bigram"], ["cancel", run]):
        status, _, told = said(capsys, *verb)
        assert status == 0, told
    assert plan([run])[0].name == name
    asked = [word for command in queue if command[0] == "squeue" for word in command if word.startswith("--name=")]
    assert asked
    assert not [name for name in asked if "," in name or "|" in name]


def test_a_pattern_of_slurms_is_no_name(words, queue, tmp_path, capsys) -> None:
    for word in ("name=a%j", f"runs={tmp_path}/50%"):
        status, _, told = said(capsys, "--site", "site.yaml", *words, word, "slurm.gpus_per_node=1")
        assert status == 2
        assert "SLURM reads '%' in a file's name as a pattern; choose another name=" in told
    assert [path.name for path in tmp_path.iterdir()] == ["site.yaml"]
    assert queue == []


def test_evaluations_during_training_are_looked_at_before_it_is_queued(words, queue, capsys) -> None:
    for tasks, sentence in (("perplexty", "task (perplexty) is unknown; did you mean 'perplexity'?"), ("lm_eval", "lm_eval")):
        more = ["train.evaluate.every=5", f"train.evaluate.tasks=[{tasks}]", "slurm.gpus_per_node=1"]
        status, _, told = said(capsys, "--site", "site.yaml", *words, *more)
        assert status == 2
        assert sentence in told
    assert queue == []


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


def test_so_is_what_it_would_begin_from_unless_that_is_yet_to_come(words, queue, tmp_path, capsys) -> None:
    for word in ("init_from=runs/first", "branch_from=runs/first", "train.distill.teacher=runs/first"):
        given = ["--site", "site.yaml", *words, "slurm.gpus_per_node=1", word]
        status, _, told = said(capsys, *given)
        assert status == 2
        assert "runs/first" in told
    assert queue == []
    assert not (tmp_path / "runs").exists()
    assert said(capsys, *given, "--after", "afterok:1")[0] == 0


def test_a_branch_may_be_submitted_where_there_is_no_gpu(words, queue, manifest, tmp_path) -> None:
    old, folder = plan([*words, "name=old", "train.precision=bf16"])
    folder.write(old, manifest)
    (folder.checkpoints / "step-4").mkdir()
    assert submit([*words, "name=new", f"branch_from={folder.path}"], load_site("site.yaml")) == ["1"]


def test_a_run_of_a_sweep_may_be_submitted_by_itself_and_in_the_sweep_again(words, monkeypatch, tmp_path) -> None:
    called, listed = [], ""

    def call(*command: str) -> str:
        called.append(command)
        return f"{len(called)}\n" if command[0] == "sbatch" else listed

    monkeypatch.setattr(slurm, "call", call)
    own = [word for word in words if not word.startswith("name=")]
    sweep, site = Sweep.of(SweepConfig("s", words=own, grid={"seed": [1, 2]}, evaluate=["bigram"])), load_site("site.yaml")
    submit_array(sweep, sweep.points, site)
    run, whole = JobFolder(tmp_path / "runs/s/seed1"), JobFolder(tmp_path / "runs/s")
    with monkeypatch.context() as patch:
        patch.setattr(slurm, "queued", lambda name: [slurm.Queued("1", "RUNNING", "", "")] * (name == job_name(whole, PRETRAIN)))
        with pytest.raises(ConfigError, match=r"is in the queue already \(job 1, RUNNING\)"):
            submit([str(run.path)], site)
    submit([str(run.path)], site)
    assert run.code.is_dir()
    assert not run.code.is_symlink()
    listed = f"N/A|{job_name(run, PRETRAIN)}\n"
    assert active(sweep) == {"seed1"}
    listed = f"1|{job_name(whole, PRETRAIN)}\n"
    assert active(sweep) == {"seed2"}
    submit_array(sweep, sweep.points, site)
    assert run.code.is_symlink()
    cancel(sweep)
    evaluations = [job.job for point in sweep.points for job in JobFolder(sweep.run(point)).jobs() if job.script == "eval"]
    assert len(evaluations) == 4
    assert set(evaluations) < set(called[-1])


def test_away_from_a_cluster_one_sentence_says_so(words, monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    status, _, told = said(capsys, "--site", "site.yaml", *words, "slurm.gpus_per_node=1")
    assert status == 2
    assert "squeue is not here, as this is no host of a SLURM cluster" in told
    assert not (tmp_path / "runs").exists()
