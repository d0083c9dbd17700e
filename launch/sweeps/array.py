"""A sweep on a cluster: a job array, a task per run, and a job behind each task that evaluates its run.

A task is a job like any other (launch/jobs): it checks its nodes, starts again, is queued again when its time is over. All tasks
run from one frozen copy of the program.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from launch.jobs import slurm
from launch.jobs.folder import JobFolder
from launch.jobs.script import Task, job_name, quoted, render
from launch.jobs.site import Site
from launch.jobs.snapshot import freeze
from launch.jobs.submit import PRETRAIN, prepared, submit_task
from launch.nodes.bad_nodes import NAME as BAD_NODES
from launch.sweeps.config import Point
from launch.sweeps.folder import Sweep
from llm.config import to_yaml
from llm.errors import ConfigError
from llm.train.config import RunConfig
from llm.train.exits import Outcome
from llm.train.run_folder import RunFolder
from llm.whole_file import write_text


def submit_array(sweep: Sweep, points: Sequence[Point], site: Site) -> str:
    """The array's id. Everything that can be refused is refused before anything is queued. Raises ConfigError, DataError."""
    site = replace(site, restart="requeue", chain=1)
    runs = [prepared(sweep.words(point), site) for point in points]
    sweep.write()
    whole = JobFolder(sweep.path.absolute())
    whole.logs.mkdir(parents=True, exist_ok=True)
    if not whole.code.is_dir():
        freeze(whole.code)
    write_text(whole.site, to_yaml(site))
    for config, folder in runs:
        _write(config, folder, whole)
    path = whole.script("array")
    path.write_text(array_script(sweep, points, site))
    array = slurm.submit_script(path)
    whole.add_job(array, "array")
    for point, (_, folder) in zip(points, runs, strict=True):
        folder.add_job(array, "pretrain")
        if sweep.config.evaluate:
            task = Task("eval", ["--model", str(folder.path), *sweep.config.evaluate])
            submit_task(folder, site, task, f"afterany:{array}_{sweep.points.index(point)}")
    return array


def array_script(sweep: Sweep, points: Sequence[Point], site: Site) -> str:
    """The script of one run, where the task's number says which."""
    folder = JobFolder(sweep.path.absolute())
    text = render(site, folder, PRETRAIN, Path.cwd(), folder.bad_nodes)
    # jobs of one name wait for one another, and tasks would
    lines = [line for line in text.splitlines() if line != "#SBATCH --dependency=singleton"]
    numbers = ",".join(str(sweep.points.index(point)) for point in points)
    throttle = f"%{sweep.config.throttle}" if sweep.config.throttle else ""
    mine = lines.index(f"RUN={quoted(str(folder.path))}")
    names = quoted([point.name for point in sweep.points])
    lines[mine : mine + 1] = [f"RUNS={names}", f"RUN={quoted(str(folder.path))}/${{RUNS[SLURM_ARRAY_TASK_ID]}}"]
    output = f"#SBATCH --output={quoted(str(folder.logs / '%A_%a.out'))}"
    return "\n".join([lines[0], f"#SBATCH --array={numbers}{throttle}", output, *(_but_output(lines[1:]))]) + "\n"


def active(sweep: Sweep) -> set[str]:
    """Names of the runs that are in the queue, as tasks or by themselves."""
    whole = job_name(JobFolder(sweep.path.absolute()), PRETRAIN)
    alone = {job_name(JobFolder(sweep.run(point).absolute()), PRETRAIN): point.name for point in sweep.points}
    listed = slurm.call("squeue", "--noheader", "--me", "--array", "--format=%K|%j").splitlines()
    jobs = [(number, name) for number, _, name in (line.partition("|") for line in listed)]
    tasks = {sweep.points[int(number)].name for number, name in jobs if name == whole and number.isdigit()}
    return tasks | {alone[name] for _, name in jobs if name in alone}


def cancel(sweep: Sweep) -> None:
    """Its runs, and the evaluations that wait for them."""
    jobs = JobFolder(sweep.path.absolute()).jobs()
    if not jobs:
        raise ConfigError(f"{sweep.path} was never submitted; Ctrl-C ends what runs here")
    jobs += [job for point in sweep.points for job in JobFolder(sweep.run(point).absolute()).jobs() if job.script == "eval"]
    # evaluations first, as the end of a run starts its own
    slurm.cancel([job.job for job in reversed(jobs)])


def _write(config: RunConfig, folder: JobFolder, whole: JobFolder) -> None:
    """A run folder as its task needs it."""
    folder.logs.mkdir(parents=True, exist_ok=True)
    write_text(RunFolder(folder.path).config, to_yaml(config))
    # one program, and what one run found of a node is true for all
    for path in (folder.site, folder.code, folder.path / BAD_NODES):
        if path.is_dir() and not path.is_symlink():
            # of a run that was submitted by itself
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.symlink_to(Path("..") / path.name)
    folder.stop.unlink(missing_ok=True)
    Outcome(None, 0, "submitted", str(folder.path)).write()


def _but_output(lines: Sequence[str]) -> list[str]:
    return [line for line in lines if not line.startswith("#SBATCH --output=")]
