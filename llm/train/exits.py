"""How a start of a run ends: an exit status, and the same in `outcome.json`, because launchers end with statuses of their own.

| status | what happened | what to do |
|---|---|---|
| 0 | the last step is reached | |
| 2 | an error that the user must mend | mend what its sentence names |
| 75 | stopped on request or out of time, and saved | start again |
| 76 | more bad steps than allowed; diagnosis written | read it first |
| 77 | hung; stacks dumped | start again |
| 78 | a node is not fit, named in bad-nodes.txt | start again without it |
| other | crashed | start again |

Nothing here imports torch, so that a supervisor is small and starts at once.
"""

import json
import os
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from llm.whole_file import write_text

DONE, MEND, STOPPED, BAD_STEPS, HUNG, UNFIT = 0, 2, 75, 76, 77, 78
NAME = "outcome.json"
# a person's file in a run folder: save, end, do not start
STOP = "stop"
# a second place for the same, of whoever watches the run and does not know its folder
TOLD = "BRAID_OUTCOME"


@dataclass(frozen=True)
class Outcome:
    """status: None while the run goes on. step: the last one done. sentence: what happened. folder: the run's. time: of writing, in
    seconds since 1970. out_of_time: it stopped for `train.max_minutes`. trained: False for a start that ended before it could; what
    is in the folder is then of others.
    """

    status: int | None
    step: int
    sentence: str
    folder: str
    time: float = 0.0
    out_of_time: bool = False
    trained: bool = True

    def write(self) -> None:
        """Into the run folder, and where the environment's BRAID_OUTCOME says."""
        self._write_to(Path(self.folder) / NAME, *told_places())

    def tell(self) -> None:
        """Where BRAID_OUTCOME says alone: the run folder is another start's."""
        self._write_to(*told_places())

    def _write_to(self, *paths: Path) -> None:
        text = json.dumps(asdict(self) | {"folder": str(Path(self.folder).absolute()), "time": time.time()}, indent=1) + "\n"
        for path in paths:
            # what happened is said anyway, and matters more than a full disk here
            with suppress(OSError):
                write_text(path, text)


def told_places() -> list[Path]:
    return [Path(told) for told in (os.environ.get(TOLD),) if told]


def read_outcome(path: Path) -> Outcome | None:
    """None where nothing has been written, or a node that died left it cut short."""
    with suppress(FileNotFoundError, ValueError):
        return Outcome(**json.loads(path.read_text()))
    return None
