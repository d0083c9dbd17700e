"""Which start owns a run folder: two that train one run would spoil each other's checkpoints.

    owner.json    process, host, job and since when; there from the beginning of a start to its end

Rank 0 takes the folder before any process group exists, and renews the file every few seconds. What a kill, a dead node or a loss
of power leaves behind keeps nobody waiting for long: on the same machine the process says whether it is over; elsewhere the time of
the last renewal does, by the file server's clock, and one that may yet live is watched until it renews the file, or should have
several times. A start that finds another's name in its file was taken for dead, suspended or cut off, and ends itself.

Locks of the file system are not relied on: shared ones often have none that hold across hosts.
"""

import json
import os
import socket
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event, Thread

from llm.errors import BraidError, CheckpointError
from llm.train.exits import STOP, Outcome
from llm.whole_file import unfinished

NAME, HEARTBEAT = "owner.json", "heartbeat"
# seconds between renewals; without one, after which a start elsewhere is over; between looks at it
RENEW, OVER, POLL = 5.0, 30.0, 0.5


class Held(BraidError):
    """Another start trains the run. It may be about to end, so this one is tried again a few times, as after a crash."""

    status = 1


@dataclass(frozen=True)
class Owner:
    """place: where process numbers mean the same, a boot of a machine and a namespace. began: the process, in ticks since then.
    folder: the run folder's inode, which a copy of it does not have.
    """

    host: str
    pid: int
    job: str | None
    since: float
    place: str
    began: str | None
    folder: int

    @classmethod
    def this(cls, run: Path) -> "Owner":
        """This process, from now on."""
        pid, job = os.getpid(), os.environ.get("SLURM_JOB_ID")
        return cls(socket.gethostname(), pid, job, time.time(), place(), began(pid), run.stat().st_ino)

    def __str__(self) -> str:
        job = f" of job {self.job}" if self.job else ""
        return f"process {self.pid}{job} on {self.host} since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.since))}"


@dataclass(frozen=True)
class Seen:
    """owner: None where the file is damaged, or not yet written. renewed: when it, or a rank's heartbeat, was written last."""

    owner: Owner | None
    renewed: float


class Hold:
    """On a run folder, from `take` to `release`."""

    def __init__(self, run: Path, owner: Owner):
        self.run, self.owner, self._ended = run, owner, Event()
        self._thread = Thread(target=self._renew, name="owner", daemon=True)
        self._thread.start()

    def release(self) -> None:
        self._ended.set()
        self._thread.join()
        with suppress(OSError):
            if (seen := look(self.run)) is not None and seen.owner == self.owner:
                (self.run / NAME).unlink()

    def _renew(self) -> None:
        while not self._ended.wait(RENEW):
            # a file system may fail for a moment
            with suppress(OSError):
                seen = look(self.run)
                if seen is None:
                    write(self.run, self.owner)
                elif seen.owner not in (None, self.owner):
                    self._end(seen.owner)
                else:
                    os.utime(self.run / NAME)

    def _end(self, other: Owner | None) -> None:
        sentence = f"{self.run} was taken over by {other}, as {self.owner} was silent for too long; this start ends, without saving"
        # not `print`: whoever was suspended may hold its lock
        os.write(2, f"error: {sentence}\n".encode())
        Outcome(Held.status, 0, sentence, str(self.run), trained=False).tell()
        os._exit(Held.status)


def take(run: Path) -> Hold:
    """Own a run folder, which is made if it is not there. Heartbeats of a start that is over are removed, and files that it left
    unfinished.

    Raises Held where another start trains the run, CheckpointError where no folder can be made.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        mine = Owner.this(run)
    except OSError as error:
        raise CheckpointError(f"run folder {run} cannot be made ({error}); make room, or choose another with runs=FOLDER") from None
    # a disk that is full is told by what fills it
    with suppress(OSError):
        while not write(run, mine):
            try:
                left = wait_until_free(run)
            except Held as held:
                Outcome(held.status, 0, str(held), str(run), trained=False).tell()
                raise
            now = look(run)
            if left is not None and now is not None and now.owner == left.owner:
                (run / NAME).unlink(missing_ok=True)
        for path in (*(run / HEARTBEAT).glob("rank-*"), *unfinished(run)):
            path.unlink(missing_ok=True)
    return Hold(run, mine)


def write(run: Path, owner: Owner) -> bool:
    """False where there is an owner, of whom nothing is changed."""
    with suppress(FileExistsError), (run / NAME).open("x") as file:
        file.write(json.dumps(asdict(owner), indent=1) + "\n")
        return True
    return False


def wait_until_free(run: Path) -> Seen | None:
    """What is left of an owner that is over; None where there is none. Raises Held where a start trains the run."""
    looked, first = time.monotonic(), look(run, ranks=True)
    seen = first
    while seen is not None and first is not None:
        waited = time.monotonic() - looked
        here = seen.owner is not None and seen.owner.place == place()
        if over(run, seen) or (waited > OVER and not here):
            return seen
        # a process here that renews nothing may be suspended
        if seen.owner != first.owner or seen.renewed > first.renewed or waited > OVER:
            raise Held(
                f"{run} is being trained by {seen.owner or 'another start'}, and two starts would spoil each other's checkpoints; "
                f"wait for its end, or ask for it with `touch {run / STOP}` (it saves first; then remove that file and start again)"
            )
        time.sleep(POLL)
        seen = look(run, ranks=True)
    return None


def over(run: Path, seen: Seen) -> bool:
    """Whether an owner is known to have ended."""
    if seen.owner is not None and seen.owner.place == place():
        ended = seen.owner.pid == os.getpid() or began(seen.owner.pid) != seen.owner.began
        return ended or seen.owner.folder != run.stat().st_ino
    now = time.time()
    # in the time of the file server, unless its disk is full
    with suppress(OSError), tempfile.NamedTemporaryFile(dir=run, prefix=".owner-") as fresh:
        now = os.fstat(fresh.fileno()).st_mtime
    return now - seen.renewed > OVER


def look(run: Path, ranks: bool = False) -> Seen | None:
    """None: the run is nobody's. ranks: look at their heartbeats too.

    Files are opened, as attributes of those that are not may be a minute old on a shared file system.
    """
    try:
        with (run / NAME).open() as file:
            text, times = file.read(), [os.fstat(file.fileno()).st_mtime]
    except FileNotFoundError:
        return None
    for path in (run / HEARTBEAT).glob("rank-*.json") if ranks else ():
        with suppress(OSError), path.open() as file:
            times.append(os.fstat(file.fileno()).st_mtime)
    owner = None
    with suppress(ValueError, TypeError):
        owner = Owner(**json.loads(text))
    return Seen(owner, max(times))


def place() -> str:
    return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"


def began(pid: int) -> str | None:
    """None: it has ended, though its parent may not have looked yet."""
    with suppress(OSError):
        # behind the command's name, which may hold anything: state, ..., ticks
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    return None
