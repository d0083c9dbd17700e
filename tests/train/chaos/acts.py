"""What a hit does, in the rank that is hit."""

import errno
import os
import random
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from llm.train.checkpoint_files import checkpoints
from tests.train.chaos.plan import Hit

# beside the run folder, on its disk
BALLAST = "ballast"
SMALL = 1 << 27


def to_rank(number: signal.Signals) -> Callable[[Path, Hit], None]:
    return lambda run, hit: os.kill(os.getpid(), number)


def to_launcher(number: signal.Signals, word: str) -> Callable[[Path, Hit], None]:
    """To the process above this one whose command line has the word."""

    def act(run: Path, hit: Hit) -> None:
        above = [(process, process.cmdline()) for process in psutil.Process().parents()]
        next(process for process, line in above if any(part.endswith(word) for part in line)).send_signal(number)

    return act


def fill_disk(run: Path, hit: Hit) -> None:
    """To the last byte, where the run is on a small disk of its own; elsewhere writing says that it is full."""
    if psutil.disk_usage(str(run)).total > SMALL:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with (run.parent / BALLAST).open("ab", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            with suppress(OSError):
                while file.write(bytes(size)) == size:
                    pass


def flip_bit(run: Path, hit: Hit) -> None:
    """In the newest checkpoint; the kill makes someone read it."""
    rng = random.Random(hit.moment)
    newest = checkpoints(run / "checkpoints")[0]
    path = rng.choice(sorted(newest.rglob("*.safetensors")))
    place = rng.randrange(path.stat().st_size)
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << rng.randrange(8)]))
    os.kill(os.getpid(), signal.SIGKILL)


# `deepspeed` starts a launcher on each node, which starts the ranks
ACTS: dict[str, Callable[[Path, Hit], None]] = {
    "kill rank": to_rank(signal.SIGKILL),
    "kill launcher": to_launcher(signal.SIGKILL, "deepspeed.launcher.launch"),
    "kill deepspeed": to_launcher(signal.SIGKILL, "bin/deepspeed"),
    "term rank": to_rank(signal.SIGTERM),
    "term launcher": to_launcher(signal.SIGTERM, "deepspeed.launcher.launch"),
    "term deepspeed": to_launcher(signal.SIGTERM, "bin/deepspeed"),
    "stall": to_rank(signal.SIGSTOP),
    "full disk": fill_disk,
    "flip": flip_bit,
}
