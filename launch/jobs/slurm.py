"""SLURM's commands, as far as runs need them. Raises ConfigError with SLURM's own sentence where one of them fails."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from llm.errors import ConfigError


@dataclass(frozen=True)
class Queued:
    """A job that the queue knows. left: of its time. why: it waits, or its hosts."""

    job: str
    state: str
    left: str
    why: str


def submit_script(path: Path, *options: str) -> str:
    """The job's id."""
    return call("sbatch", "--parsable", *options, str(path)).split(";")[0].strip()


def queued(name: str) -> list[Queued]:
    """Jobs of this name that have not ended, mine."""
    lines = call("squeue", "--noheader", "--me", f"--name={name}", "--format=%A|%T|%L|%R", "--sort=i").splitlines()
    return [Queued(*line.split("|", 3)) for line in lines if line]


def cancel(jobs: Sequence[str]) -> None:
    if jobs:
        call("scancel", *jobs)


def call(*words: str) -> str:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    except FileNotFoundError:
        raise ConfigError(f"{words[0]} is not here, as this is no host of a SLURM cluster; submit on its login node") from None
    except subprocess.TimeoutExpired:
        raise ConfigError(f"{words[0]} did not answer within 60 s; try again when the cluster's controller is up") from None
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split()) or f"status {error.returncode}"
        raise ConfigError(f"{' '.join(words)} was refused: {said}") from None
    return done.stdout
