"""What submitting adds to a run folder.

runs/NAME/  site.yaml        the cluster and what its jobs ask for
            pretrain.sbatch  the script as it was submitted last
            code/            the program, frozen; its git.json and changes.diff say what it is
            jobs.jsonl       a line per job submitted
            starts.jsonl     a line per start that ended: how, where, what was decided
            bad-nodes.txt    hosts that no job is to run on: a line each, host, time, reason
            health/          what each rank found of its node before the last start
            stop             while it is there no start begins, and a run under way saves and ends
            logs/            JOB.out of each job;  JOB-N/ rank-R.out of its N-th start
"""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launch.nodes.bad_nodes import bad_nodes
from llm.train.exits import STOP


@dataclass(frozen=True)
class Job:
    """script: `pretrain`, `eval` or `data_prep`. submitted: seconds since 1970. workplace: where relative paths begin."""

    job: str
    script: str
    submitted: float
    workplace: str = ""


@dataclass(frozen=True)
class JobFolder:
    """Paths of a run folder that jobs use."""

    path: Path

    @property
    def site(self) -> Path:
        return self.path / "site.yaml"

    @property
    def code(self) -> Path:
        return self.path / "code"

    @property
    def starts(self) -> Path:
        return self.path / "starts.jsonl"

    @property
    def stop(self) -> Path:
        return self.path / STOP

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def begun(self) -> bool:
        """Whether a start was made."""
        return any(self.logs.glob("*-*/"))

    @property
    def bad_nodes(self) -> list[str]:
        return sorted(bad_nodes(self.path))

    @property
    def main(self) -> str:
        """The script of what the folder is for."""
        return "data_prep" if self.script("data_prep").is_file() else "pretrain"

    @property
    def workplace(self) -> Path:
        """The folder that it was submitted in, as long as that is there; else the current one."""
        places = [Path(job.workplace) for job in self.jobs() if job.script == "pretrain" and job.workplace]
        return next((place for place in places[-1:] if place.is_dir()), Path.cwd())

    def script(self, name: str) -> Path:
        return self.path / f"{name}.sbatch"

    def jobs(self) -> list[Job]:
        """In the order of their submission."""
        return [Job(**line) for line in read_lines(self.path / "jobs.jsonl")]

    def add_job(self, job: str, script: str) -> None:
        append_line(self.path / "jobs.jsonl", asdict(Job(job, script, time.time(), str(Path.cwd()))))


def append_line(path: Path, record: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """A line that a crash cut short is left out."""
    return list(_parsed(path)) if path.is_file() else []


def _parsed(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            continue
