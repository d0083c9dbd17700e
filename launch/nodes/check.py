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
from launch.nodes.judge import Finding, judge
from launch.nodes.limits import Limits
from launch.nodes.report import FOLDER, Report, read_reports
from launch.ranks import free_port
from llm.train.exits import DONE, MEND, UNFIT, Outcome

SCRIPT = Path(__file__).resolve().parents[1] / "health.py"
# launchers of scripts, to which Python is not named
LAUNCHERS = {"deepspeed", "torchrun", "accelerate"}


def check(run: Path, limits: Limits, start: Sequence[str], ranks: int | None, hosts: Sequence[str]) -> int:
    """The exit status. start: words that start a command on every rank; none: processes on this machine."""
    try:
        shutil.rmtree(run / FOLDER, ignore_errors=True)
        (run / FOLDER).mkdir(parents=True)
    except OSError as error:
        return tell([Finding(None, f"run folder {run} cannot be written ({error.strerror}); choose another with runs=FOLDER")], run)
    probe = [str(SCRIPT), str(run.resolve()), "--probe", *limits.options()]
    if start:
        python = [] if Path(start[0]).name in LAUNCHERS else [sys.executable]
        _wait([subprocess.Popen([*start, *python, *probe], start_new_session=True)], limits.seconds)
    else:
        count = ranks or _devices()
        here = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        places = [here | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
        _wait([_local(probe, place) for place in places], limits.seconds)
    return judged(run, limits, hosts)


def judged(run: Path, limits: Limits, hosts: Sequence[str]) -> int:
    """The exit status, by the reports that are there. hosts: all that were asked; without them nobody misses one that is silent."""
    reports = read_reports(run)
    if not reports:
        # a slow file system will do: as any crash, it is tried again a few times
        return tell([Finding(None, f"no probe left a report in {run / FOLDER}; see what its start said", passes=True)], run, 1)
    status = tell(judge(reports, hosts, limits), run)
    if status == DONE:
        print(f"health: {_summary(reports)}", flush=True)
    return status


def tell(found: Sequence[Finding], run: Path, passing: int = UNFIT) -> int:
    """Print each finding, note bad nodes; the exit status. passing: that of findings which may not be there at the next start."""
    for finding in found:
        print(f"health: {finding.sentence}", file=sys.stderr, flush=True)
    mend = [finding for finding in found if finding.host is None and not finding.passes]
    bad = [(finding.host, finding.sentence) for finding in found if finding.host is not None]
    if bad:
        hosts = dict.fromkeys(host for host, _ in bad)
        add_bad_nodes(run, bad)
        print(f"health: from now on without {', '.join(hosts)} ({run / NAME}; delete a line to take it again)", file=sys.stderr)
    elif found and not mend:
        print("health: that is no single node's fault, so none is left out; the next start looks again", file=sys.stderr)
    status = MEND if mend else UNFIT if bad else passing if found else DONE
    if status != DONE:
        Outcome(status, 0, "; ".join(finding.sentence for finding in mend or found), str(run), trained=False).write()
    return status


def _summary(reports: Sequence[Report]) -> str:
    speeds = [link.gbytes for report in reports for link in report.links if link.gbytes is not None]
    links = f", links {min(speeds):.2g} to {max(speeds):.2g} GB/s" if speeds else ""
    return f"{len(reports)} rank(s) on {len({report.host for report in reports})} node(s) are fit{links}"


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
