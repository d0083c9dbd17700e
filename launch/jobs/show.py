"""How a run is doing, from its folder and the queue."""

import json
import time
from pathlib import Path

from rich.table import Table

from launch.jobs import slurm
from launch.jobs.folder import JobFolder, read_lines
from launch.jobs.script import Task, job_name
from launch.restarts import newest_step
from llm.errors import ConfigError
from llm.train.exits import NAME, read_outcome

STARTS = 8


def status(folder: JobFolder) -> Table:
    """Jobs in the queue, the last starts and how they ended, and where the run is."""
    shown = Table(title=str(folder.path), title_justify="left", show_header=False, box=None)
    shown.add_column(style="bold")
    shown.add_column()
    try:
        jobs = {script: slurm.queued(job_name(folder, Task(script))) for script in [folder.main, "eval"]}
        for script, job in ((script, job) for script, found in jobs.items() for job in found):
            shown.add_row(f"job {job.job}", f"{script} {job.state.lower()}, {job.left} left, {job.why}")
        if not any(jobs.values()):
            shown.add_row("jobs", "none in the queue")
    except ConfigError as error:
        shown.add_row("jobs", str(error))
    for line in read_lines(folder.starts)[-STARTS:]:
        hours = (line["ended"] - line["began"]) / 3600
        shown.add_row(f"start {line['start']}", f"{hours:.2f} h on {line['hosts'] or '?'}: {line['sentence']} -> {line['verdict']}")
    now = read_outcome(folder.path / NAME)
    if now is not None:
        shown.add_row("the run", now.sentence)
    if folder.main == "pretrain":
        shown.add_row("checkpoint", f"step {newest_step(folder.path)}")
        shown.add_row("last record", last_record(folder.path))
    if folder.bad_nodes:
        shown.add_row("left out", ", ".join(folder.bad_nodes))
    if folder.stop.exists():
        shown.add_row("stop", f"{folder.stop} is there; `braid-submit resume` removes it")
    return shown


def last_record(run: Path) -> str:
    """Of metrics.jsonl, and how old the newest heartbeat is."""
    lines = read_lines(run / "metrics.jsonl")
    beats = [path.stat().st_mtime for path in (run / "heartbeat").glob("rank-*.json")]
    alive = f", heartbeat {time.time() - max(beats):.0f} s ago" if beats else ""
    if not lines:
        return f"none{alive}"
    last = {name: lines[-1][name] for name in ("step", "loss", "tokens_per_s") if name in lines[-1]}
    return json.dumps(last) + alive


def newest_logs(folder: JobFolder) -> list[Path]:
    """The newest job's output, and that of rank 0 in the newest start."""
    jobs = max(folder.logs.glob("*.out"), key=_age, default=None)
    starts = max(folder.logs.glob("*-*/rank-0.out"), key=_age, default=None)
    return [path for path in (jobs, starts) if path is not None]


def _age(path: Path) -> float:
    return path.stat().st_mtime
