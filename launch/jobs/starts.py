"""The starts of a run: `starts.jsonl`, a line per start that ended, and logs/JOB-N/ for each.

A job whose node dies cannot write its line; the next start does it then.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace

from launch.jobs.folder import JobFolder, append_line, read_lines
from launch.restarts import CANCELLED, End, Limits, Verdict, Word, end_of, judge
from llm.train.exits import BAD_STEPS, DONE, MEND, NAME, STOPPED, UNFIT, Outcome, read_outcome
from llm.train.owner import Held, wait_until_free
from llm.whole_file import write_text

BEGAN = "began.json"
# the status of a start whose job ended without saying how
LOST = 1


@dataclass(frozen=True)
class Place:
    """Where a start runs. requeues: how often the job was queued again."""

    job: str
    hosts: str = ""
    requeues: int = 0

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Place":
        job, hosts = environment.get("SLURM_JOB_ID", "here"), environment.get("SLURM_JOB_NODELIST", "")
        return cls(job, hosts, int(environment.get("SLURM_RESTART_COUNT") or 0))


def begin(
    folder: JobFolder, place: Place, limits: Limits, heed_done: bool = True, requeues: int | None = None
) -> tuple[Word | None, str]:
    """The name of a new start, whose folder in `logs` is there; or the word that says why there is none, and a sentence.

    heed_done: a run that has reached its last step does not start. requeues: of a job at most.
    """
    last = read_outcome(folder.path / NAME)
    if heed_done and last is not None and last.status == DONE:
        return Word.DONE, last.sentence
    if folder.stop.exists():
        return Word.STOP, f"{folder.stop} is there; `braid-submit resume {folder.path}` removes it and goes on"
    try:
        wait_until_free(folder.path)
    except Held as held:
        why = exhausted(place, requeues)
        return (Word.STOP, f"given up: {why}; {held}") if why else (Word.LATER, str(held))
    for lost in unrecorded(folder):
        ended = told(folder, lost, LOST)
        verdict = judge([*former(folder), ended], limits)
        record(folder, lost, ended, verdict.word)
        if verdict.word is Word.STOP:
            return Word.STOP, verdict.why
    numbers = [int(number) for path in folder.logs.glob("*-*/") if (number := path.name.rpartition("-")[2]).isdigit()]
    start = f"{place.job}-{max(numbers, default=-1) + 1}"
    (folder.logs / start).mkdir(parents=True)
    write_text(folder.logs / start / BEGAN, json.dumps(asdict(place) | {"began": time.time()}) + "\n", sync=True)
    return None, start


def end(
    folder: JobFolder, start: str, status: int, asked: str | None, place: Place, limits: Limits, requeues: int | None = None
) -> Verdict:
    """Write down how a start ended, and judge what is next.

    status: of the step. asked: the signal that the job got, or CANCELLED. requeues: of a job at most.
    """
    ended = told(folder, start, status, asked)
    if folder.stop.exists():
        ended = replace(ended, asked=CANCELLED)
    verdict = judge([*former(folder), ended], limits)
    if verdict.word is Word.LATER:
        why = exhausted(place, requeues) or (barren(folder, place, ended) if asked == "USR1" or ended.out_of_time else None)
        if why:
            verdict = replace(verdict, word=Word.STOP, why=f"given up: {why}; the last: {ended.sentence}")
    record(folder, start, ended, verdict.word)
    return verdict


def told(folder: JobFolder, start: str, status: int, asked: str | None = None) -> End:
    """How a start ended, by what the run told since it began, else by its step's status."""
    ended = end_of(read_outcome(folder.logs / start / NAME) or since(began(folder, start)["began"], folder), status)
    if ended.saved is None:
        saved = [line["saved"] for line in read_lines(folder.starts)[-1:]]
        ended = replace(ended, saved=saved[0] if saved else None)
    if asked and ended.status not in (DONE, MEND, BAD_STEPS, UNFIT):
        # a signal before the run could heed it ends its processes, and is no failure
        ended = replace(ended, status=STOPPED)
    return replace(ended, asked=asked)


def since(time: float, folder: JobFolder) -> Outcome | None:
    """The run folder's, where ranks were told no other place; unless it is of an earlier start."""
    outcome = read_outcome(folder.path / NAME)
    return outcome if outcome is not None and outcome.time >= time else None


def exhausted(place: Place, most: int | None) -> str | None:
    if most is None or place.requeues < most:
        return None
    return f"job {place.job} has been queued again {place.requeues} time(s), as often as slurm.max_requeues allows"


def barren(folder: JobFolder, place: Place, ended: End) -> str | None:
    """Whether the time of a whole job went by without a new checkpoint."""
    lines = [line for line in read_lines(folder.starts) if (line["job"], line["requeues"]) != (place.job, place.requeues)]
    before = lines[-1]["saved"] if lines else None
    if ended.saved != before:
        return None
    return f"the whole of job {place.job} brought no new checkpoint, nor would the next; ask for more slurm.hours"


def unrecorded(folder: JobFolder) -> list[str]:
    """Names of starts that began and have no line."""
    known = {line["start"] for line in read_lines(folder.starts)}
    return sorted(path.parent.name for path in folder.logs.glob(f"*-*/{BEGAN}") if path.parent.name not in known)


def record(folder: JobFolder, start: str, ended: End, verdict: str) -> None:
    where = {"start": start} | began(folder, start) | {"ended": time.time()}
    append_line(folder.starts, where | asdict(ended) | {"verdict": verdict})


def began(folder: JobFolder, start: str) -> dict:
    """Place and time."""
    return json.loads((folder.logs / start / BEGAN).read_text())


def former(folder: JobFolder) -> list[End]:
    """The ends before this one. Whoever goes on after a verdict of STOP has mended something: it counts from there."""
    ends: list[End] = []
    for line in read_lines(folder.starts):
        ends.append(End(**{field.name: line[field.name] for field in fields(End)}))
        if line["verdict"] == Word.STOP:
            ends.clear()
    return ends
