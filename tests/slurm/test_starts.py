"""What a run's jobs decide, from what its starts left in the folder: no cluster is needed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch.jobs.folder import JobFolder, read_lines
from launch.jobs.starts import Place, begin, end
from launch.restarts import CANCELLED, Limits, Verdict, Word
from llm.train.exits import BAD_STEPS, DONE, HUNG, MEND, STOPPED, UNFIT, Outcome
from tests.checkout import ROOT

LIMITS = Limits(restarts=4, same_step=3)


class Run:
    """A run folder whose starts end as told."""

    def __init__(self, path: Path):
        self.folder = JobFolder(path)
        (path / "checkpoints").mkdir()
        (path / "heartbeat").mkdir()

    def begin(self, job: str = "7", requeues: int = 0) -> str:
        word, start = begin(self.folder, Place(job, "n[1-2]", requeues), LIMITS)
        assert word is None, start
        return start

    def tell(self, start: str, status: int | None, step: int, saved: int | None, late: bool = False) -> None:
        """What the ranks and the guard leave."""
        outcome = Outcome(status, step, f"at {step}", str(self.folder.path), time=0.0, out_of_time=late)
        record = json.dumps(outcome.__dict__)
        (self.folder.logs / start / "outcome.json").write_text(record)
        (self.folder.path / "outcome.json").write_text(record)
        beat = {"step": step, "phase": "the update", "since": 0.0, "pid": 1, "host": "n1"}
        (self.folder.path / "heartbeat" / "rank-0.json").write_text(json.dumps(beat))
        if saved is not None:
            (self.folder.path / "checkpoints" / f"step-{saved}").mkdir(exist_ok=True)

    def start(self, status: int | None, step: int = 5, saved: int | None = None, asked: str | None = None, **place) -> Verdict:
        """One start, to its end. status: None for a crash."""
        most = place.pop("most", None)
        late = place.pop("late", False)
        start = self.begin(**place)
        self.tell(start, status, step, saved, late)
        where = Place(place.get("job", "7"), "n[1-2]", place.get("requeues", 0))
        return end(self.folder, start, 9 if status is None else status, asked, where, LIMITS, most)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


@pytest.mark.parametrize(
    ("status", "asked", "word"),
    [
        (DONE, None, Word.DONE),
        (DONE, "USR1", Word.DONE),
        (MEND, None, Word.STOP),
        (BAD_STEPS, "TERM", Word.STOP),
        (HUNG, None, Word.AGAIN),
        (None, None, Word.AGAIN),
        (UNFIT, None, Word.LATER),
        (STOPPED, "USR1", Word.LATER),
        (STOPPED, "TERM", Word.LATER),
        (STOPPED, CANCELLED, Word.STOP),
        # one rank alone was asked to stop
        (STOPPED, None, Word.AGAIN),
    ],
)
def test_what_follows_a_start(run: Run, status: int | None, asked: str | None, word: Word) -> None:
    assert run.start(status, 5, 5, asked).word is word
    (line,) = read_lines(run.folder.starts)
    assert (line["start"], line["asked"], line["verdict"], line["saved"]) == ("7-0", asked, word, 5)


def test_a_run_out_of_time_goes_on_later(run: Run) -> None:
    assert run.start(STOPPED, 9, 9, late=True).word is Word.LATER


def test_a_job_that_saved_nothing_is_the_last(run: Run) -> None:
    assert run.start(STOPPED, 9, 9, "USR1").word is Word.LATER
    assert run.start(None, 12, 9, requeues=1).word is Word.AGAIN
    verdict = run.start(None, 12, 9, "USR1", requeues=1)
    assert verdict.word is Word.STOP
    assert "the whole of job 7 brought no new checkpoint" in verdict.why


def test_preemption_before_a_checkpoint_is_no_failure(run: Run) -> None:
    for requeues in range(20):
        start = run.begin(requeues=requeues)
        # ended by the signal while it imports, with nothing told
        assert end(run.folder, start, 143, "TERM", Place("7", "n1", requeues), LIMITS).word is Word.LATER


def test_nodes_that_are_not_fit_are_no_failures_of_the_run(run: Run) -> None:
    """Nor do they hide the run's own, which count together."""
    words = []
    for requeues in range(20):
        words.append(run.start(UNFIT, requeues=requeues).word)
        if requeues in (5, 10):
            words.append(run.start(None, 40, requeues=requeues).word)
    assert words == [*[Word.LATER] * 6, Word.AGAIN, *[Word.LATER] * 5, Word.AGAIN, *[Word.LATER] * 9]
    assert run.start(None, 40, requeues=20).word is Word.STOP


def test_a_start_that_never_trained_is_not_blamed_for_where_others_are(run: Run) -> None:
    """Beside a run under way there are its heartbeats, which are none of this start's."""
    for step in (12, 30):
        start = run.begin()
        run.tell(start, None, step, None)
        told = Outcome(1, 0, "another start trains it", str(run.folder.path), trained=False)
        (run.folder.logs / start / "outcome.json").write_text(json.dumps(told.__dict__))
        end(run.folder, start, 1, None, Place("7"), LIMITS)
    lines = read_lines(run.folder.starts)
    assert [(line["status"], line["at"], line["sentence"]) for line in lines] == [(1, None, "another start trains it")] * 2


def test_crashes_at_one_step_end_it(run: Run) -> None:
    words = [run.start(None, 40, 30).word for _ in range(3)]
    assert words == [Word.AGAIN, Word.AGAIN, Word.STOP]


def test_a_new_checkpoint_starts_the_count_anew(run: Run) -> None:
    words = [run.start(None, 40, saved).word for saved in (10, 20, 30, 30, 30)]
    assert words == [Word.AGAIN] * 4 + [Word.STOP]


def test_the_cap_on_requeues(run: Run) -> None:
    assert run.start(STOPPED, 9, 9, "USR1", requeues=1, most=2).word is Word.LATER
    verdict = run.start(STOPPED, 15, 15, "USR1", requeues=2, most=2)
    assert verdict.word is Word.STOP
    assert "queued again 2 time(s), as often as slurm.max_requeues allows" in verdict.why


def test_a_start_whose_job_was_lost_is_written_down_by_the_next(run: Run) -> None:
    """Three of them at one step are three failures, though none could say so."""
    for requeues in range(3):
        run.tell(run.begin(requeues=requeues), None, 12, 10)
    word, why = begin(run.folder, Place("7", "n1", 3), LIMITS)
    assert word is Word.STOP
    assert "given up: 3 starts in a row failed at step 12" in why
    lines = read_lines(run.folder.starts)
    assert [(line["start"], line["at"], line["saved"]) for line in lines] == [(f"7-{n}", 12, 10) for n in range(3)]


def test_whoever_goes_on_after_the_end_has_all_attempts_again(run: Run) -> None:
    words = [run.start(None, 40, 30).word for _ in range(6)]
    assert words == [Word.AGAIN, Word.AGAIN, Word.STOP] * 2


def test_a_finished_run_does_not_start(run: Run) -> None:
    run.start(DONE, 20, 20)
    assert begin(run.folder, Place("8", "n1", 0), LIMITS) == (Word.DONE, "at 20")


def test_a_stop_file_keeps_it_from_starting_and_from_starting_again(run: Run) -> None:
    run.folder.stop.touch()
    word, sentence = begin(run.folder, Place("8", "n1", 0), LIMITS)
    assert word is Word.STOP
    assert "braid-submit resume" in sentence
    run.folder.stop.unlink()
    start = run.begin()
    run.folder.stop.touch()
    assert end(run.folder, start, 75, None, Place("7", "n1", 0), LIMITS).word is Word.STOP


def test_the_words_that_the_job_script_reads(run: Run) -> None:
    def again(*words: str) -> tuple[str, str]:
        command = [sys.executable, str(ROOT / "launch" / "again.py"), *words]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.strip(), done.stderr

    path = str(run.folder.path)
    assert again("begin", path)[0] == "go here-0"
    run.tell("here-0", None, 3, None)
    told, why = again("end", path, "--start=here-0", "--status=137", "--asked=", "--max-restarts=5", "--same-step=3")
    assert told == "again 5"
    assert "crashed (status 137, SIGKILL, maybe out of memory) at or soon after step 3" in why
    assert again("begin", path)[0] == "go here-1"
    assert again("end", path, "--start=here-1", "--status=75", "--asked=cancelled")[0] == "stop"


def test_a_start_that_never_began_keeps_none_from_starting(run: Run) -> None:
    (run.folder.logs / "7-0").mkdir(parents=True)
    # nor does what people put beside it, and what a node that died has written in part
    (run.folder.logs / "old-logs").mkdir()
    (run.folder.path / "outcome.json").write_text('{"status": 7')
    assert run.begin() == "7-1"
    assert read_lines(run.folder.starts) == []
