"""The script that sbatch gets: a site's options and settings, above what `slurm/*.sbatch` says the same for every run."""

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from launch.jobs.folder import JobFolder
from launch.jobs.site import Site
from launch.jobs.snapshot import ROOT

LINE = "#---- the same for every "


@dataclass(frozen=True)
class Task:
    """What a job does. script: `pretrain`, `eval` or `data_prep`. words: of its command."""

    script: str
    words: Sequence[str] = ()


def render(site: Site, folder: JobFolder, task: Task, workplace: Path, exclude: Sequence[str] = ()) -> str:
    """workplace: the folder that relative paths of the config begin in. exclude: hosts that the job is not to run on."""
    top, line, rest = (scripts_root() / f"{task.script}.sbatch").read_text().partition(LINE)
    options = [f"#SBATCH {option}" for option in sbatch_options(site, folder, task, workplace, exclude)]
    values = settings_of(site, folder, task)
    settings = [f"{name}={quoted(values[name])}" for name in re.findall(r"^([A-Z_]+)=", top, re.MULTILINE)]
    setup = [*(f"module load {shlex.quote(name)}" for name in site.modules), *site.setup]
    exports = [f"export {name}={shlex.quote(value)}" for name, value in site.environment.items()]
    title = f"# {folder.path.name}: {task.script}, written by braid-submit"
    return "\n".join(["#!/bin/bash", title, *options, "", *setup, *exports, *settings, line + rest])


def job_name(folder: JobFolder, task: Task) -> str:
    """Jobs of one name run one after the other (singleton), so it is of this folder alone, whatever others' names are. SLURM's
    commands take names in lists, with commas.
    """
    suffix = "" if task.script == "pretrain" else f"-{task.script}"
    return f"{re.sub(r'[^A-Za-z0-9.+_=-]', '_', folder.path.name)}-{sha256(str(folder.path).encode()).hexdigest()[:6]}{suffix}"


def sbatch_options(site: Site, folder: JobFolder, task: Task, workplace: Path, exclude: Sequence[str]) -> list[str]:
    again = site.restart == "requeue"
    given = {
        "job-name": job_name(folder, task),
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "constraint": site.constraint,
        "reservation": site.reservation,
        "nodes": site.nodes,
        "ntasks-per-node": site.ranks,
        "cpus-per-task": site.cpus_per_rank,
        "mem": site.memory,
        "time": clock(site.hours),
        "exclude": ",".join(exclude) or None,
        "chdir": workplace,
        "output": folder.logs / "%j.out",
        "open-mode": "append",
        "signal": f"B:USR1@{site.warning_seconds}",
    }
    options = [f"--{name}={shlex.quote(str(value))}" for name, value in given.items() if value is not None]
    if site.gpus_per_node and site.gpu_option is not None:
        kind = f"{site.gpu_type}:" if site.gpu_type else ""
        options.append(f"--{site.gpu_option}={'gpu:' if site.gpu_option == 'gres' else ''}{kind}{site.gpus_per_node}")
    options += ["--requeue" if again else "--no-requeue", *(["--exclusive"] if site.exclusive else []), *site.sbatch]
    return [*options, "--dependency=singleton"]


def settings_of(site: Site, folder: JobFolder, task: Task) -> dict[str, str | int | Sequence[str]]:
    """The variables that the scripts read: each of them those that its own top sets."""
    limits = {"max-restarts": site.max_restarts, "same-step": site.same_step, "max-requeues": site.max_requeues}
    return {
        "RUN": str(folder.path),
        "CODE": str(folder.code),
        "PYTHON": site.interpreter,
        "LAUNCHER": site.launcher,
        "RANKS_PER_NODE": site.ranks,
        "RESTART": site.restart,
        "LIMITS": [f"--{name}={value}" for name, value in limits.items()],
        "HEALTH": site.health.options() if site.health.seconds else [],
        "WATCH": [f"--silence={site.silence_minutes:g}", f"--start={site.start_minutes:g}"] if site.silence_minutes else [],
        "WORDS": list(task.words),
        "SRUN": pyxis(site),
        "INSIDE": apptainer(site),
    }


def pyxis(site: Site) -> list[str]:
    """What srun is given for the container."""
    box = site.container
    if box.kind != "pyxis":
        return []
    mounts = [f"--container-mounts={','.join(box.mounts)}"] if box.mounts else []
    return [f"--container-image={box.image}", *mounts, *box.options]


def apptainer(site: Site) -> list[str]:
    """What stands before each command, for the container."""
    box = site.container
    if box.kind != "apptainer":
        return []
    mounts = [word for mount in box.mounts for word in ("--bind", mount)]
    return ["apptainer", "exec", *(["--nv"] if site.gpus_per_node else []), *mounts, *box.options, str(box.image)]


def quoted(value: str | int | Sequence[str]) -> str:
    """As bash reads it; a list is an array."""
    return shlex.quote(str(value)) if isinstance(value, str | int) else f"({shlex.join(value)})"


def clock(hours: float) -> str:
    """D-HH:MM:SS"""
    minutes, seconds = divmod(round(3600 * hours), 60)
    return f"{minutes // 1440}-{minutes % 1440 // 60:02}:{minutes % 60:02}:{seconds:02}"


def scripts_root() -> Path:
    """`slurm/` of a checkout or a frozen copy, `launch/slurm/` of an installed wheel."""
    return next(place for place in (ROOT / "slurm", ROOT / "launch" / "slurm") if (place / "pretrain.sbatch").is_file())
