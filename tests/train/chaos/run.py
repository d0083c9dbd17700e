"""A run under `braid-supervise` and `deepspeed` that is hit again and again, beside an undisturbed one."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from llm.testing import free_port, run_ranks
from llm.train.exits import DONE, MEND
from tests.checkout import ROOT, environment
from tests.train.chaos.acts import BALLAST
from tests.train.chaos.injector import DATA, EVENTS, HITS, Injector, read_lines
from tests.train.chaos.plan import Hit, write_plan

LAST = re.compile(r"step (\d+) of \1")
SCRIPT = str(Path(__file__).with_name("pretrain.py"))


@dataclass(frozen=True)
class Chaos:
    """folder: of logs, and the runs' in `runs` below it. words: of the run. seconds: for a run and its restarts."""

    folder: Path
    words: list[str]
    ranks: int
    seconds: float

    def undisturbed(self) -> None:
        """The run `whole`, without a launcher; it counts the events of each place."""
        write_plan(self.folder / "whole", [])
        run_ranks(in_peace, self.ranks, self.folder / "whole", self._settings("whole"), timeout=self.seconds, connect=False)

    def disturbed(self, hits: list[Hit]) -> None:
        """The run `hit`, to its end. A person makes room when the disk is full; everything else is the supervisor's."""
        write_plan(self.folder / "hit", hits)
        for rank in range(self.ranks):
            name = EVENTS.format(rank)
            (self.folder / "hit" / name).write_bytes((self.folder / "whole" / name).read_bytes())
        supervise = [sys.executable, str(ROOT / "launch" / "supervise.py"), "--pause", "0.1"]
        patience = ["--max-restarts", str(len(hits)), "--same-step", str(len(hits))]
        launcher = ["deepspeed", "--master_port", str(free_port()), "--num_accelerators", str(self.ranks), SCRIPT]
        command = [*supervise, *patience, "--", *launcher, *self._settings("hit")]
        end = time.monotonic() + self.seconds
        while True:
            status = self._run(command, end - time.monotonic())
            if status != MEND or read_lines(self.folder / "hit" / HITS)[-1]["kind"] != "full disk":
                break
            (self.runs / BALLAST).unlink(missing_ok=True)
        assert status == DONE, self.said()[-5000:]

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def said(self) -> str:
        """All that the disturbed run printed."""
        return (self.folder / "hit" / "said").read_text()

    def sentences(self) -> list[str]:
        """The supervisor's: one for each start that did not end well. The one that did has the last word."""
        said = [line.removeprefix("supervise: ") for line in self.said().splitlines() if line.startswith("supervise: ")]
        return said[:-1] if said and LAST.fullmatch(said[-1]) else said

    def hits(self) -> list[dict[str, Any]]:
        return read_lines(self.folder / "hit" / HITS)

    def data(self, name: str, rank: int) -> list[dict[str, Any]]:
        """What a rank was handed, in order of time."""
        return read_lines(self.folder / name / DATA.format(rank))

    def processes(self) -> list[str]:
        """Command lines of what still runs."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("BRAID_CHAOS", "").startswith(str(self.folder)):
                    found.append(" ".join(process.cmdline()))
        return found

    def _settings(self, name: str) -> list[str]:
        return [*self.words, f"name={name}", f"runs={self.runs}"]

    def _run(self, command: list[str], seconds: float) -> int:
        folder = self.folder / "hit"
        scratch = folder / "tmp"
        scratch.mkdir(exist_ok=True)
        more = {"BRAID_CHAOS": str(folder), "TMPDIR": str(scratch), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        # torch makes it at every start, and leaves it empty
        more["TORCHINDUCTOR_CACHE_DIR"] = str(self.folder / "inductor")
        with (folder / "said").open("a") as said:
            process = subprocess.Popen(command, env=environment(**more), stdout=said, stderr=said, start_new_session=True)
            try:
                return process.wait(timeout=seconds)
            finally:
                self._end(process)

    def _end(self, process: subprocess.Popen) -> None:
        """A run that takes too long, with all that it started."""
        if process.poll() is None:
            below = psutil.Process(process.pid).children(recursive=True)
            for each in (process, *below):
                with suppress(psutil.Error):
                    each.send_signal(signal.SIGKILL)
            process.wait(20)


def in_peace(rank: int, folder: Path, words: list[str]) -> None:
    """One rank of an undisturbed run."""
    from llm.train.start import pretrain

    injector = Injector(folder, rank)
    pretrain(words)
    injector.close()


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[bool]:
    """Makes `folder` a disk of its own, where this process may mount one; says whether it did. Its files stay when it ends."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True, timeout=20).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            kept = shutil.copytree(folder, folder.with_name(f"{folder.name}-kept"))
            subprocess.run(["umount", "--lazy", str(folder)], check=True, timeout=20)
            folder.rmdir()
            kept.rename(folder)
