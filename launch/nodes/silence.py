"""Which ranks of a run have gone silent, by their heartbeats (llm/train/guard.py).

Times are those of the one who looks: a heartbeat counts from when it was seen to change, so that neither a node's clock nor a file
server's can make a rank look dead, or alive. It is what files say that changes: a shared file system may tell the time of their
writing a minute late, and the last heartbeat of one start would be taken for the first of the next.
"""

import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from llm.train.owner import HEARTBEAT


@dataclass(frozen=True)
class Beat:
    """A rank's last heartbeat. of: how many ranks there are. seen: time.monotonic when it came."""

    rank: int
    of: int
    step: int
    phase: str
    host: str
    pid: int
    seen: float


@dataclass
class Heartbeats:
    """What has been seen of a run folder's heartbeats since this was made; those of earlier starts do not count."""

    run: Path
    began: float = field(default_factory=time.monotonic)
    beats: dict[int, Beat] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._known: dict[Path, str] = {}
        for path in self._paths():
            with suppress(OSError):
                self._known[path] = path.read_text()

    def look(self) -> None:
        for path in self._paths():
            # a file may be replaced meanwhile, and a file system fail for a moment
            with suppress(OSError, ValueError, KeyError):
                text = path.read_text()
                if self._known.get(path) != text:
                    beat = json.loads(text)
                    rank, fields = int(path.stem.removeprefix("rank-")), ("of", "step", "phase", "host", "pid")
                    self.beats[rank] = Beat(rank, *(beat[name] for name in fields), seen=time.monotonic())
                    self._known[path] = text

    def silent(self, seconds: float, start_seconds: float) -> list[int] | None:
        """Ranks that were not heard of for so long, of which some never were. start_seconds: until the first is heard of.

        None: not one rank was ever heard of, and that time is over.
        """
        now = time.monotonic()
        if not self.beats:
            return None if now - self.began > start_seconds else []
        first = min(beat.seen for beat in self.beats.values())
        ranks = range(max(beat.of for beat in self.beats.values()))
        last = {rank: self.beats[rank].seen if rank in self.beats else first for rank in ranks}
        return [rank for rank in ranks if now - last[rank] > seconds]

    @property
    def step(self) -> int:
        """The last that is known to be done."""
        return max((beat.step - 1 for beat in self.beats.values()), default=0)

    def _paths(self) -> list[Path]:
        return list((self.run / HEARTBEAT).glob("rank-*.json"))
