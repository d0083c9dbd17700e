"""A thread beside each rank's training: it writes a heartbeat, ends a rank that hangs, asks to stop when that is wanted.

    heartbeat/rank-R.json   step, phase, since when, process and host
    heartbeat/rank-R.stack  the same rank's stacks, whenever it gets SIGUSR2
    stacks/step-N-TIME/     rank-R.txt: the Python stack of every thread of each rank, from when the run hung
                            collectives-R: the last ones that torch recorded, for `torchfrtrace`

The rank whose loop has been silent for too long makes a folder in `stacks`; every rank that sees one writes its stacks there. Then
all exit with 77. A thread that holds Python's lock would stop this one too: faulthandler's own timer, in C, ends the rank then.
"""

import faulthandler
import json
import math
import os
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import TextIO

from llm.train.exits import HUNG, Outcome
from llm.train.launcher import gone, launchers
from llm.train.owner import HEARTBEAT
from llm.train.run_folder import RunFolder
from llm.train.stop import StopRequest
from llm.train.world import World
from llm.whole_file import write_text

STACKS = "stacks"
# seconds between looks, and between heartbeats
POLL, BEAT = 5.0, 10.0
# of the limit: what is not a step of a run that is under way
PATIENCE = 3
ORPHAN_MINUTES = 5.0


@dataclass(frozen=True)
class Beat:
    """since: time.monotonic of its beginning. limit: minutes it may take."""

    step: int
    phase: str
    since: float
    limit: float


class Guard:
    """Use it as a context around training. minutes: a step's limit; 0: none.

    `beat` says where the loop is; it costs a microsecond, and everything else is the thread's.
    """

    def __init__(self, folder: RunFolder, world: World, minutes: float, stop: StopRequest, poll: float = POLL):
        self.folder, self.world, self.minutes, self.stop, self.poll = folder, world, minutes, stop, poll
        self._launchers = launchers()
        self._orphaned: float | None = None
        self._ended = Event()
        self._stacks = folder.path / STACKS
        self._known = self._dumps()
        self._written = -math.inf
        self.beat(0, "start", PATIENCE)

    def beat(self, step: int, phase: str, patience: float = 1, minutes: float = 0.0) -> None:
        """From now on the loop is in this phase. patience: factor of the limit. minutes: more of them."""
        self._beat = Beat(step, phase, time.monotonic(), patience * (self.minutes or math.inf) + minutes)

    @property
    def done(self) -> int:
        """The last step that was done, or is known to be."""
        return max(0, self._beat.step - 1)

    def __enter__(self) -> "Guard":
        self._stack = self._open_stack()
        self._thread = Thread(target=self._watch, name="guard", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        faulthandler.unregister(signal.SIGUSR2)
        if self._stack is not None:
            self._stack.close()
        self._write_heartbeat()

    def _open_stack(self) -> TextIO | None:
        """Where stacks go when they are asked for from outside: an open file, as one cannot be opened in a signal's handler."""
        with suppress(OSError):
            path = self._heartbeat(".stack")
            path.parent.mkdir(exist_ok=True)
            file = path.open("w")
            faulthandler.register(signal.SIGUSR2, file)
            return file
        return None

    def _watch(self) -> None:
        while not self._ended.is_set():
            if time.monotonic() - self._written > BEAT:
                self._write_heartbeat()
            self._look()
            self._ended.wait(self.poll)

    def _look(self) -> None:
        beat = self._beat
        limit, since = 60 * beat.limit, beat.since
        # no signal reaches ranks that run elsewhere, behind a launcher; a file does
        if self.world.first and self.folder.stop.exists():
            self.stop.ask(f"{self.folder.stop} is there")
        if self._orphaned is None and any(gone(process) for process in self._launchers):
            self._orphaned = time.monotonic()
            self.stop.ask("its launcher is gone")
        if self._orphaned is not None:
            limit, since = min(limit, 60 * ORPHAN_MINUTES), max(since, self._orphaned)
        if limit < math.inf and sys.__stderr__ is not None:
            faulthandler.dump_traceback_later(limit + 60, exit=True, file=sys.__stderr__)
        dumps = self._dumps() - self._known
        if dumps:
            self._end(dumps)
        elif time.monotonic() - since > limit:
            self._end(set(), beat)

    def _dumps(self) -> set[str]:
        try:
            return {path.name for path in self._stacks.iterdir()}
        except OSError:
            # none yet, or a file system that fails for a moment
            return set()

    def _end(self, dumps: set[str], mine: Beat | None = None) -> None:
        """Write stacks, wait for those of the other ranks, say what happened if this rank noticed it, exit."""
        if mine is not None:
            dumps = {f"step-{mine.step}-{time.strftime('%Y%m%dT%H%M%S')}"}
        for name in dumps:
            folder = self._stacks / name
            # a full disk must not keep a rank that hangs, nor torch's record
            with suppress(OSError, RuntimeError):
                folder.mkdir(parents=True, exist_ok=True)
                with (folder / f"rank-{self.world.rank}.txt").open("w") as file:
                    print(f"rank {self.world.rank}, {self._beat.phase} of step {self._beat.step}", file=file, flush=True)
                    faulthandler.dump_traceback(file)
                collectives = flight_record()
                if collectives:
                    (folder / f"collectives-{self.world.rank}").write_bytes(collectives)
        with suppress(OSError):
            missing = self._wait_for_all(self._stacks / min(dumps))
            if mine is not None:
                self._say(mine, self._stacks / min(dumps), missing)
        os._exit(HUNG)

    def _wait_for_all(self, folder: Path) -> list[int]:
        """The ranks that have not written their stacks in time."""
        end = time.monotonic() + 3 * self.poll + 1
        while True:
            missing = [rank for rank in range(self.world.size) if not (folder / f"rank-{rank}.txt").is_file()]
            if not missing or time.monotonic() > end:
                return missing
            time.sleep(self.poll / 10)

    def _say(self, beat: Beat, stacks: Path, missing: list[int]) -> None:
        silent = f"; none came of rank(s) {', '.join(map(str, missing))}, stopped or dead" if missing else ""
        law = "train.hang_minutes" if self._orphaned is None else "its launcher is gone"
        minutes = (time.monotonic() - beat.since) / 60
        sentence = (
            f"hung: rank {self.world.rank} has been in {beat.phase} of step {beat.step} for {minutes:.2g} minutes ({law}); every "
            f"thread's stack is in {stacks}{silent}; checkpoints are untouched: go on with `pretrain.py {self.folder.path}`"
        )
        # not `print`: whoever hangs may hold its lock
        os.write(2, f"{sentence}\n".encode())
        Outcome(HUNG, self.done, sentence, str(self.folder.path)).write()

    def _write_heartbeat(self) -> None:
        beat, self._written = self._beat, time.monotonic()
        began = time.time() - (time.monotonic() - beat.since)
        who = {"pid": os.getpid(), "host": socket.gethostname(), "of": self.world.size, "written": time.time()}
        with suppress(OSError):
            path = self._heartbeat(".json")
            path.parent.mkdir(exist_ok=True)
            write_text(path, json.dumps({"step": beat.step, "phase": beat.phase, "since": began} | who) + "\n")

    def _heartbeat(self, suffix: str) -> Path:
        return self.folder.path / HEARTBEAT / f"rank-{self.world.rank}{suffix}"


def flight_record() -> bytes | None:
    """The last collectives of this process, where torch records them: which one did not end, and who is not in it."""
    bindings = sys.modules.get("torch._C._distributed_c10d")
    dump = getattr(bindings, "_dump_nccl_trace", None) or getattr(bindings, "_dump_fr_trace", None)
    return dump() if dump else None
