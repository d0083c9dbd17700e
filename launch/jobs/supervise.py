"""The loop of job scripts without SLURM: for a run whose folder is known, on this machine or on the hosts of a hostfile.

What starts did is kept in the folder, as jobs keep it, and so outlives the supervisor. Ranks on other hosts are no processes of its
own: the folder's `stop` asks them to save and end, their heartbeats say whether they are still there.
"""

import socket
import time

import psutil

from launch.jobs.folder import JobFolder
from launch.jobs.starts import Place, begin, end, since
from launch.restarts import Limits, Verdict, Word, heartbeats
from launch.supervisor import Supervisor
from llm.train.exits import DONE, NAME, STOPPED, read_outcome

# a rank writes a heartbeat every 10 seconds; shared disks show them late
SILENT = 40.0


class RunSupervisor(Supervisor):
    """Of one command that trains the run in `folder`."""

    def __init__(self, command: list[str], limits: Limits, folder: JobFolder):
        super().__init__(command, limits)
        self.folder, self.place = folder, Place("here", socket.gethostname())
        self.began, self.own = time.time(), False

    def attempt(self) -> Verdict:
        word, start = begin(self.folder, self.place, self.limits)
        if word is not None:
            return Verdict(word, start, DONE if word is Word.DONE else STOPPED)
        self.told, self.began = self.folder.logs / start / NAME, time.time()
        status = self.start()
        left = self._await_ranks()
        if left:
            why = f"ranks on {', '.join(left)} do not end, and would write into the same folder; end them there, then start again"
            return Verdict(Word.STOP, why, status or 1)
        return end(self.folder, start, status, self.asked, self.place, self.limits)

    def reach_elsewhere(self) -> bool:
        if not self._hosts():
            return False
        self._ask()
        return True

    def _ask(self) -> None:
        """The file of a person, who wants the run to end, is left where it is."""
        if not self.folder.stop.exists():
            self.folder.stop.touch()
            self.own = True

    def _await_ranks(self) -> list[str]:
        """Until those that the command's end left behind have ended, which are asked to; the hosts of those that do not."""
        limit = time.monotonic() + self.limits.grace
        while (hosts := self._hosts()) and time.monotonic() < limit:
            self._ask()
            time.sleep(1)
        if self.own:
            self.folder.stop.unlink(missing_ok=True)
            self.own = False
        return hosts

    def _hosts(self) -> list[str]:
        """Where ranks of this start are, that are no processes of this one."""
        outcome = read_outcome(self.told) or since(self.began, self.folder)
        if outcome is None or outcome.status is not None:
            return []
        beats = [beat for beat in heartbeats(outcome) if beat["written"] >= self.began]
        return sorted({beat["host"] for beat in beats if self._lives(beat)})

    def _lives(self, beat: dict) -> bool:
        if beat["host"] == self.place.hosts:
            return psutil.pid_exists(beat["pid"])
        return time.time() - beat["written"] < SILENT
