"""The health check as its caller sees it: start a probe on each rank, wait, judge their reports, tell."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from launch.nodes.bad_nodes import NAME, add_bad_nodes
from launch.nodes.job import in_job, nodes
from launch.nodes.judge import Finding, judge
from launch.nodes.limits import Limits
from launch.nodes.report import FOLDER, Report, read_reports
from launch.ranks import free_port
from llm.train.exits import DONE, MEND, UNFIT

SCRIPT = Path(__file__).resolve().parents[1] / "health.py"
# launchers of scripts, to which Python is not named
LAUNCHERS = {"deepspeed", "torchrun", "accelerate"}


def check(run: Path, limits: Limits, start: Sequence[str], ranks: int | None) -> int:
    """The exit status. start: words that start a command on every rank; none: `srun` within a job, else processes here."""
    began = time.monotonic()
    try:
        shutil.rmtree(run / FOLDER, ignore_errors=True)
        (run / FOLDER).mkdir(parents=True)
    except OSError as error:
        return tell([Finding(None, f"run folder {run} cannot be written ({error.strerror}); choose another with runs=FOLDER")], run)
    probe = [str(SCRIPT), str(run.resolve()), "--probe", *_options(limits)]
    if not start and in_job():
        # as many tasks as the job has; one that dies leaves the others to report
        start = ["srun", "--kill-on-bad-exit=0", "--wait=0", "--quit-on-interrupt"]
    if start:
        python = [] if Path(start[0]).name in LAUNCHERS else [sys.executable]
        _wait([subprocess.Popen([*start, *python, *probe], start_new_session=True)], limits.seconds)
    else:
        count = ranks or _devices()
        here = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        places = [here | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
        _wait([_local(probe, place) for place in places], limits.seconds)
    reports = read_reports(run)
    # elsewhere nobody knows of those that do not answer
    status = tell(judge(reports, nodes() if in_job() else [], limits), run)
    if status == DONE:
        print(f"health: {_summary(reports)}, {time.monotonic() - began:.1f} s", flush=True)
    return status


def tell(found: Sequence[Finding], run: Path) -> int:
    """Print each finding, note bad nodes; the exit status."""
    for finding in found:
        print(f"health: {finding.sentence}", file=sys.stderr, flush=True)
    mend = [finding for finding in found if finding.host is None]
    bad = [(finding.host, finding.sentence) for finding in found if finding.host is not None]
    if bad:
        hosts = dict.fromkeys(host for host, _ in bad)
        add_bad_nodes(run, bad)
        print(f"health: from now on without {', '.join(hosts)} ({run / NAME}; delete a line to take it again)", file=sys.stderr)
    return MEND if mend else UNFIT if bad else DONE


def _summary(reports: Sequence[Report]) -> str:
    speeds = [link.gbytes for report in reports for link in report.links if link.gbytes is not None]
    links = f", links {min(speeds):.2g} to {max(speeds):.2g} GB/s" if speeds else ""
    return f"{len(reports)} rank(s) on {len({report.host for report in reports})} node(s) are fit{links}"


def _options(limits: Limits) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in vars(limits).items()]


def _local(probe: Sequence[str], place: Mapping[str, str]) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, *probe], env={**os.environ, **place}, start_new_session=True)


def _devices() -> int:
    import torch

    return torch.cuda.device_count() or 1


def _wait(processes: Sequence[subprocess.Popen], seconds: float) -> None:
    """Until all ended or the time is up; then they are ended."""
    end = time.monotonic() + seconds
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, end - time.monotonic()))
    for number, grace in ((signal.SIGTERM, 5), (signal.SIGKILL, 5)):
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, number)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(grace)
