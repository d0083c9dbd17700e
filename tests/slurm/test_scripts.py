"""What sbatch gets: the shipped sites' options and settings, as they were agreed, above scripts that shellcheck has read."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from launch.jobs.folder import JobFolder
from launch.jobs.script import LINE, Task, clock, quoted, render, scripts_root
from launch.jobs.site import Site, load_site
from launch.jobs.submit import PRETRAIN
from llm.config import configs_root
from llm.errors import ConfigError
from tests.checkout import ROOT

GOLDEN = Path(__file__).parent / "golden"
SITES = sorted(path.stem for path in (configs_root() / "slurm").glob("*.yaml"))
FOLDER, WORKPLACE = JobFolder(Path("/project/llm/runs/demo")), Path("/project/llm")
SHELLCHECK = Path(sys.executable).parent / "shellcheck"


def rendered(site: str, *words: str, task: Task = PRETRAIN) -> str:
    return render(load_site(site, words), FOLDER, task, WORKPLACE, exclude=["n7", "n9"])


def of_site(name: str) -> str:
    python = ["slurm.python=/project/venv/bin/python"] if name == "plain" else []
    return rendered(name, "slurm.nodes=4", *python)


@pytest.mark.parametrize("name", SITES)
def test_the_top_of_a_sites_script_is_the_agreed_one(name: str) -> None:
    """`python -m tests.slurm.test_scripts` writes them anew."""
    top, line, rest = of_site(name).partition(LINE)
    assert top == (GOLDEN / f"{name}.sbatch").read_text()
    assert (scripts_root() / "pretrain.sbatch").read_text().endswith(line + rest)


def test_four_sites_are_agreed_on() -> None:
    assert [path.stem for path in sorted(GOLDEN.iterdir())] == SITES
    assert len(SITES) == 4


@pytest.mark.parametrize("script", ["pretrain", "eval", "data_prep"])
def test_a_rendered_script_sets_all_that_the_hand_written_one_does(script: str) -> None:
    shipped, _, _ = (scripts_root() / f"{script}.sbatch").read_text().partition(LINE)
    made, _, _ = rendered("plain", task=Task(script, ["a b"])).partition(LINE)
    for pattern in (r"^[A-Z_]+(?==)", r"^#SBATCH --[a-z-]+"):
        assert set(re.findall(pattern, shipped, re.MULTILINE)) <= set(re.findall(pattern, made, re.MULTILINE))
    assert (script == "pretrain") != ("WORDS=('a b')" in made)


def test_shellcheck_finds_nothing(tmp_path: Path) -> None:
    files = [*sorted((ROOT / "slurm").glob("*.s*h*")), ROOT / ".ci" / "run"]
    for name in SITES:
        (tmp_path / f"{name}.sbatch").write_text(of_site(name))
        files.append(tmp_path / f"{name}.sbatch")
    assert len(files) == 9
    done = subprocess.run([SHELLCHECK, "--exclude=SC1091", *files], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_scripts_know_no_home() -> None:
    for path in [*(ROOT / "slurm").glob("*.sbatch"), *(configs_root() / "slurm").glob("*.yaml")]:
        assert not re.search(r"\$HOME|~/|/home/|/root", path.read_text()), path


@pytest.mark.slow
@pytest.mark.multirank
@pytest.mark.timeout(200)
def test_a_step_that_is_never_made_is_not_waited_for(tmp_path: Path) -> None:
    """As SLURM's commands, these: none but the ranks' `srun` does anything, and it waits for ever."""
    commands = {"srun": "[[ $* == *--overlap* ]] || exec sleep 600", "squeue": "exit 0", "scontrol": "echo n1", "scancel": "exit 0"}
    for name, line in commands.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{line}\n")
        (tmp_path / name).chmod(0o755)
    words = [f"slurm.python={sys.executable}", "slurm.health.seconds=0", "slurm.start_minutes=0.05", "slurm.max_restarts=1"]
    script = render(load_site("plain", words), JobFolder(tmp_path / "run"), PRETRAIN, tmp_path)
    script = script.replace(f"CODE={tmp_path}/run/code", f"CODE={ROOT}")
    path = f"{tmp_path}:{os.environ['PATH']}"
    job = {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "n1", "SLURM_JOB_NAME": "run", "USER": "user", "PATH": path}
    done = subprocess.run(["bash"], input=script, env=os.environ | job, capture_output=True, text=True, timeout=180, check=False)
    assert "hung: no rank began to train within 0.05 minutes" in done.stderr
    assert "given up" in done.stderr
    assert done.returncode not in (0, 1), done.stderr


@pytest.mark.parametrize(
    ("hours", "shown"), [(24, "1-00:00:00"), (0.5, "0-00:30:00"), (49.0125, "2-01:00:45"), (1 / 3600, "0-00:00:01")]
)
def test_hours_as_slurm_writes_them(hours: float, shown: str) -> None:
    assert clock(hours) == shown


def test_settings_are_read_back_by_bash_as_they_are() -> None:
    words = ["plain", "two words", "$HOME", "it's", '"', "a=b", "[1, 2]", "*", ""]
    script = f'W={quoted(words)}\nX={quoted(words[2])}\nprintf \'%s\\0\' "${{W[@]}}" "$X"'
    told = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=20, check=True).stdout
    assert told.split("\0")[:-1] == [*words, "$HOME"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["slurm.nodes=0"], r"slurm\.nodes \(0\) must be at least 1"),
        (["slurm.gpus_per_node=-1"], r"slurm\.gpus_per_node \(-1\) must not be negative; 0 runs on CPUs"),
        (["slurm.start_minutes=0"], r"slurm\.start_minutes \(0\) must leave time to load the model"),
        (["slurm.hours=0.05"], r"slurm\.hours \(0\.05\) must leave time beside slurm\.warning_seconds \(180\)"),
        (["slurm.chain=3"], r"slurm\.chain \(3\) has no effect with slurm\.restart=requeue"),
        (["slurm.container.kind=pyxis"], r"slurm\.container\.image \(None\) and slurm\.container\.kind \(pyxis\) go together"),
        (["slurm.environment.A-B=1"], r"slurm\.environment\.A-B is no name of a variable"),
        (["slurm.partitoin=x"], "did you mean|partitoin"),
    ],
)
def test_sites_that_cannot_work(words: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        load_site("plain", words)
    assert "\n" not in str(caught.value)


def test_ranks_follow_gpus_unless_they_are_said() -> None:
    assert Site(gpus_per_node=4).ranks == 4
    assert Site(gpus_per_node=0).ranks == 1
    assert Site(gpus_per_node=0, ranks_per_node=3).ranks == 3


if __name__ == "__main__":
    for each in SITES:
        (GOLDEN / f"{each}.sbatch").write_text(of_site(each).partition(LINE)[0])
