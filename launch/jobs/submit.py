"""Submitting: what a run is, is settled and written down before it is queued."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from launch.jobs import slurm
from launch.jobs.folder import JobFolder
from launch.jobs.script import Task, job_name, render
from launch.jobs.site import Site
from launch.jobs.snapshot import freeze
from llm.config import to_yaml
from llm.errors import ConfigError
from llm.train.config import RunConfig
from llm.train.exits import Outcome
from llm.train.owner import wait_until_free
from llm.train.phases import check_phases, manifests_of, newest_step, phases_of
from llm.train.run_folder import RunFolder
from llm.train.start import check_sources, plan
from llm.whole_file import write_text

PRETRAIN = Task("pretrain")


def submit(words: Sequence[str], site: Site, after: str | None = None) -> list[str]:
    """Queue the run that `words` name, FILE.yaml... key.path=value... or its folder. Returns the ids of its jobs, first to last.

    Everything that can be refused is refused before anything is written. after: sbatch's --dependency, such as `afterany:12`.

    Raises:
        ConfigError, DataError: what the run's config, its data or SLURM refuse. Held: it is being trained outside of the queue.
    """
    config, folder = prepared(words, site, after)
    # a run of a sweep, whose program is the sweep's, may be in the queue as a task of it
    folders = [folder, *([JobFolder(folder.path.parent)] if folder.code.is_symlink() else [])]
    for each in folders:
        check_queue(each, PRETRAIN, "`braid-submit cancel` ends it")
    wait_until_free(folder.path)
    write(config, folder, site)
    return queue(folder, site, PRETRAIN, after)


def submit_task(folder: JobFolder, site: Site, task: Task, after: str | None = None) -> str:
    """Queue another job of a run folder, such as its evaluation: of the program that the run has, else of today's. Returns its id.

    Raises ConfigError.
    """
    check_name(folder)
    if not folder.code.is_dir() or not (folder.code.is_symlink() or folder.script(PRETRAIN.script).is_file()):
        check_queue(folder, task, "wait for its end, as its program would change")
        folder.logs.mkdir(parents=True, exist_ok=True)
        freeze(folder.code)
    return queue(folder, replace(site, chain=1), task, after)[0]


def check_queue(folder: JobFolder, task: Task, way_out: str) -> None:
    """Raise ConfigError where such a job waits or runs."""
    busy = slurm.queued(job_name(folder, task))
    if busy:
        raise ConfigError(f"{folder.path} is in the queue already (job {busy[0].job}, {busy[0].state}); {way_out}")


def check_name(folder: JobFolder) -> None:
    """Raise ConfigError where SLURM would read something else."""
    odd = next((letter for letter in "%\\\n" if letter in str(folder.path)), None)
    if odd is not None:
        raise ConfigError(
            f"run folder {str(folder.path)!r}: SLURM reads {odd!r} in a file's name as a pattern; choose another name="
        )


def script(words: Sequence[str], site: Site) -> str:
    """The script that `submit` queues; nothing is written. Raises as it does."""
    _, folder = prepared(words, site)
    return render(site, folder, PRETRAIN, Path.cwd(), folder.bad_nodes)


def prepared(words: Sequence[str], site: Site, after: str | None = None) -> tuple[RunConfig, JobFolder]:
    """The run, checked as it does itself when it starts. after: jobs that may yet train what it begins from.

    Raises ConfigError, DataError, CheckpointError.
    """
    config, run = plan(words)
    folder, phases = JobFolder(run.path.absolute()), phases_of(config)
    check_name(folder)
    step = newest_step(run.checkpoints)
    check_phases(phases, site.nodes * site.ranks, manifests_of(phases, step), step, run.tokenizer)
    if config.train.precision == "auto" and run.config.is_file():
        config = replace(config, train=replace(config.train, precision=run.read_config().train.precision))
    run.check_same(config)
    if after is None:
        check_sources(config, run, phases, site.nodes * site.ranks)
    if config.train.evaluate.every:
        # seconds, for those who ask for it alone
        from eval.scheduled import planned_tasks

        for phase in phases:
            planned_tasks(phase.config)
    return config, folder


def write(config: RunConfig, folder: JobFolder, site: Site) -> None:
    """The run folder as jobs need it: config, site, frozen program, and no word of an end any more."""
    folder.logs.mkdir(parents=True, exist_ok=True)
    write_text(RunFolder(folder.path).config, to_yaml(config))
    write_text(folder.site, to_yaml(site))
    if not folder.begun or not folder.code.is_dir():
        freeze(folder.code)
    folder.stop.unlink(missing_ok=True)
    Outcome(None, 0, "submitted", str(folder.path)).write()


def queue(folder: JobFolder, site: Site, task: Task, after: str | None) -> list[str]:
    """Write the script and submit it, as often as the chain is long."""
    path = folder.script(task.script)
    path.write_text(render(site, folder, task, Path.cwd(), folder.bad_nodes))
    options = [f"--dependency=singleton,{after}"] if after else []
    jobs = []
    for _ in range(site.chain):
        jobs.append(slurm.submit_script(path, *options))
        folder.add_job(jobs[-1], task.script)
    return jobs
