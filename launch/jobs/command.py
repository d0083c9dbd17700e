"""The words of `braid-submit`: which verb, which site, which run."""

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import chdir
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from launch.jobs.folder import JobFolder
from launch.jobs.script import Task, job_name
from launch.jobs.show import newest_logs, status
from launch.jobs.site import WORD, Site, load_site
from llm.config import is_override
from llm.errors import CheckpointError, ConfigError

SITE = "BRAID_SITE"


def run(words: Sequence[str]) -> int:
    """The exit status. Raises ConfigError, DataError, CheckpointError."""
    verbs = {"status": _status, "logs": _logs, "cancel": _cancel, "resume": _resume, "eval": _eval, "data": _data}
    if words[0] in verbs:
        return verbs[words[0]](words[1:])
    given, rest = _options().parse_known_args(words)
    _known(rest)
    return _submit(rest, _site(given, given.site or os.environ.get(SITE), rest), given)


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="braid-submit", add_help=False)
    parser.add_argument("--site")
    parser.add_argument("--chain", type=int)
    parser.add_argument("--after")
    parser.add_argument("--dry-run", action="store_true")
    return parser


def _site(given: argparse.Namespace, name: str | Path | None, words: Sequence[str]) -> Site:
    """The site with the `slurm.` words and options of a command line. Raises ConfigError."""
    if name is None:
        raise ConfigError(f"--site (none) must name the cluster; give a file, or a name in configs/slurm, or set {SITE}")
    site = load_site(name, [word for word in words if word.startswith(WORD)])
    if given.chain is None:
        return site
    chained = replace(site, chain=given.chain, restart="chain")
    chained.check()
    return chained


def _submit(words: Sequence[str], site: Site, given: argparse.Namespace) -> int:
    # torch and the model's code, which the other verbs can do without
    from launch.jobs.submit import script, submit

    own = [word for word in words if not word.startswith(WORD)]
    if not own:
        raise ConfigError("no config is given; name FILE.yaml... key.path=value...")
    if given.dry_run:
        print(script(own, site), end="")
        print(f"submitted {site.chain} time(s) without --dry-run", file=sys.stderr)
        return 0
    jobs = submit(own, site, given.after)
    print(f"{', '.join(jobs)} queued; `braid-submit status` says how the run is", file=sys.stderr)
    print(jobs[0])
    return 0


def _resume(words: Sequence[str]) -> int:
    given, rest = _options().parse_known_args(words)
    folder = _folder(rest)
    _known(rest)
    site = _site(given, given.site or folder.site, rest)
    whole = [word if is_override(word) else str(Path(word).absolute()) for word in rest]
    with chdir(folder.workplace):
        return _submit(whole, site, given)


def _status(words: Sequence[str]) -> int:
    Console(highlight=False).print(status(_folder(words, datasets=True)))
    return 0


def _logs(words: Sequence[str]) -> int:
    folder, follow = _folder(words, datasets=True), "-f" in words
    files = newest_logs(folder)
    if not files:
        raise ConfigError(f"{folder.path} has no logs yet; `braid-submit status {folder.path}` says what its jobs wait for")
    return subprocess.run(["tail", "-n", "40", *(["-F"] if follow else []), *map(str, files)], check=False).returncode


def _cancel(words: Sequence[str]) -> int:
    """The file ends a run that no signal reaches, and keeps the rest of a chain from starting."""
    from launch.jobs import slurm

    folder = _folder(words, datasets=True)
    way_on = "give `braid-submit data` again to go on"
    if folder.main == "pretrain":
        folder.stop.touch()
        way_on = f"a run under way saves first. `braid-submit resume {folder.path}` goes on"
    # the run may be one of a hostfile's
    jobs = slurm.queued(job_name(folder, Task(folder.main))) if shutil.which("squeue") else []
    slurm.cancel([job.job for job in jobs])
    print(f"{len(jobs)} job(s) cancelled; {way_on}", file=sys.stderr)
    return 0


def _eval(words: Sequence[str]) -> int:
    given, rest = _options().parse_known_args(words)
    folder = _folder(rest)
    own = [word for word in rest[1:] if not word.startswith(WORD)]
    if not own:
        raise ConfigError("no evaluation is given; name some: perplexity,bigram")
    site = _site(given, given.site or folder.site, rest)
    with chdir(folder.workplace):
        return _task(folder, site, Task("eval", ["--model", str(folder.path), *own]), given)


def _data(words: Sequence[str]) -> int:
    given, rest = _options().parse_known_args(words)
    own = [word for word in rest if not word.startswith(WORD)]
    if not own or is_override(own[0]):
        raise ConfigError("no recipe is given; name RECIPE.yaml key.path=value...")
    site = replace(_site(given, given.site or os.environ.get(SITE), rest), gpus_per_node=0, ranks_per_node=1, nodes=1)
    return _task(JobFolder(Path("runs", f"data-{Path(own[0]).stem}").absolute()), site, Task("data_prep", own), given)


def _task(folder: JobFolder, site: Site, task: Task, given: argparse.Namespace) -> int:
    from launch.jobs.script import render
    from launch.jobs.submit import submit_task

    if given.dry_run:
        print(render(site, folder, task, Path.cwd(), folder.bad_nodes), end="")
    else:
        print(submit_task(folder, site, task, given.after))
    return 0


def _folder(words: Sequence[str], datasets: bool = False) -> JobFolder:
    """datasets: the folder of a job that prepares one will do."""
    paths = [Path(word) for word in words if not word.startswith("-") and not is_override(word)]
    if not paths:
        raise ConfigError("no run is given; name its folder, runs/NAME")
    folder = JobFolder(paths[0].absolute())
    if not (paths[0] / "config.yaml").is_file() and not (datasets and folder.main == "data_prep"):
        raise CheckpointError(f"{paths[0]} is no run folder: it holds no config.yaml; give runs/NAME")
    return folder


def _known(words: Sequence[str]) -> None:
    unknown = [word for word in words if word.startswith("-")]
    if unknown:
        raise ConfigError(f"{unknown[0]} is no option of braid-submit; `braid-submit --help` names them")
