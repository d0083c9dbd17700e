"""The SLURM job that this process is the script of, if it is."""

import os
import subprocess

SECONDS = 30


def in_job() -> bool:
    """Whether this is a job's script, or was started by it: not one of its steps."""
    return "SLURM_JOB_ID" in os.environ and "SLURM_STEP_ID" not in os.environ


def nodes() -> list[str]:
    return _lines("scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"])


def steps() -> list[str]:
    """Those of `srun`: not the script itself, nor the one for whoever logs in."""
    listed = _lines("squeue", "--noheader", "--steps", f"--jobs={os.environ['SLURM_JOB_ID']}", "--format=%i")
    return [step for step in listed if step.rpartition(".")[2].isdigit()]


def _lines(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True).stdout.split()
