"""The starts of a run in jobs: `starts.jsonl`, a line per start that ended, and logs/JOB-N/ for each.

A job whose node dies cannot write its line; the next start does it then.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from launch.jobs.folder import JobFolder, append_line, read_lines
from launch.restarts import CANCELLED, End, Limits, Verdict, Word, end_of, judge
from llm.train.exits import BAD_STEPS, DONE, MEND, NAME, STOPPED, UNFIT, read_outcome

# of a start whose job ended without saying how
LOST = 1


@dataclass(frozen=True)
class Place:
    """Where a start runs. requeues: how often the job was queued again. most: how often it may be, or None."""

    job: str
    hosts: str
    requeues: int
    most: int | None = None

    @classmethod
    def of(cls, environment: Mapping[str, str], most: int | None = None) -> "Place":
        job, hosts = environment.get("SLURM_JOB_ID", "here"), environment.get("SLURM_JOB_NODELIST", "")
        return cls(job, hosts, int(environment.get("SLURM_RESTART_COUNT") or 0), most)


def begin(folder: JobFolder, place: Place) -> tuple[Word | None, str]:
    """The name of a new start, whose folder in `logs` is there; or the word that says why there is none, and a sentence."""
    last = read_outcome(folder.path / NAME)
    if last is not None and last.status == DONE:
        return Word.DONE, last.sentence
    if folder.stop.exists():
        return Word.STOP, f"{folder.stop} is there; `braid-submit resume {folder.path}` removes it and goes on"
    for lost in unrecorded(folder):
        end = told(folder, lost, LOST)
        record(folder, lost, replace(place, hosts="", job=lost.rpartition("-")[0]), end, None, "its job was lost")
    numbers = [int(path.name.rpartition("-")[2]) for path in folder.logs.glob("*-*/")]
    start = f"{place.job}-{max(numbers, default=-1) + 1}"
    (folder.logs / start).mkdir(parents=True)
    return None, start


def end(folder: JobFolder, start: str, status: int, asked: str | None, place: Place, limits: Limits) -> Verdict:
    """Write down how a start ended, and judge what is next. status: of the step; asked: the job's signal, or CANCELLED."""
    ended = told(folder, start, status, asked)
    ends = [*(end_in(line) for line in read_lines(folder.starts)), ended]
    verdict = judge(ends, limits, CANCELLED if folder.stop.exists() else asked)
    if verdict.word is Word.LATER:
        why = exhausted(place) or (barren(folder, place, ended) if asked == "USR1" or ended.out_of_time else None)
        if why:
            verdict = Verdict(Word.STOP, f"given up: {why}; the last: {ended.sentence}")
    record(folder, start, place, ended, asked, verdict.word)
    return verdict


def told(folder: JobFolder, start: str, status: int, asked: str | None = None) -> End:
    """How a start ended, by what the run told in its folder of `logs`, else by its step's status."""
    ended = end_of(read_outcome(folder.logs / start / NAME), status)
    if ended.saved is None:
        saved = [line["saved"] for line in read_lines(folder.starts)[-1:]]
        ended = replace(ended, saved=saved[0] if saved else None)
    if asked and ended.status not in (DONE, MEND, BAD_STEPS, UNFIT):
        # a signal before the run could heed it ends its processes, and is no failure
        ended = replace(ended, status=STOPPED)
    return ended


def exhausted(place: Place) -> str | None:
    if place.most is None or place.requeues < place.most:
        return None
    return f"job {place.job} has been queued again {place.requeues} times, as often as slurm.max_requeues allows"


def barren(folder: JobFolder, place: Place, ended: End) -> str | None:
    """Whether the time of a whole job went by without a new checkpoint."""
    former = [line for line in read_lines(folder.starts) if (line["job"], line["requeues"]) != (place.job, place.requeues)]
    before = former[-1]["saved"] if former else None
    if ended.saved != before:
        return None
    return f"the whole of job {place.job} brought no new checkpoint, nor would the next; ask for more slurm.hours"


def unrecorded(folder: JobFolder) -> list[str]:
    """Names of starts that have a folder and no line."""
    known = {line["start"] for line in read_lines(folder.starts)}
    return sorted(path.name for path in folder.logs.glob("*-*/") if path.name not in known)


def record(folder: JobFolder, start: str, place: Place, ended: End, asked: str | None, verdict: str) -> None:
    began = (folder.logs / start).stat().st_ctime
    where = {"start": start, "job": place.job, "requeues": place.requeues, "hosts": place.hosts}
    times = {"began": began, "ended": time.time()}
    append_line(folder.starts, where | times | {"asked": asked} | asdict(ended) | {"verdict": verdict})


def end_in(line: Mapping) -> End:
    return End(line["status"], line["at"], line["saved"], line["sentence"], line["out_of_time"])
