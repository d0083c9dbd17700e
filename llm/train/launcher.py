"""Which processes started this rank, and whether they are still there: a launcher that is killed leaves its ranks running."""

import os
from collections.abc import Sequence

import psutil

COMMANDS = {"deepspeed", "torchrun", "accelerate", "braid-supervise", "supervise.py", "braid-watch", "watch.py"}
MODULES = {"deepspeed.launcher.launch", "deepspeed.launcher.runner", "torch.distributed.run", "torch.distributed.launch"}


def starts_ranks(command: Sequence[str]) -> bool:
    """Whether a command line is a launcher's: a script's name, or `python -m MODULE`. A shell whose script names one is none."""
    names = [os.path.basename(word) for word in command]
    if not names or not (names[0].startswith("python") or names[0] in COMMANDS):
        return False
    words = [word for word in names if not word.startswith("-") or word == "-m"][:3]
    if "-m" in words:
        return bool(MODULES & set(words))
    return bool(COMMANDS & set(words[:2]))


def launchers() -> list[psutil.Process]:
    """Ancestors of this process that start ranks or watch them."""
    found = []
    for ancestor in psutil.Process().parents():
        try:
            if starts_ranks(ancestor.cmdline()):
                found.append(ancestor)
        except psutil.Error:
            # of another user, or gone meanwhile
            continue
    return found


def gone(process: psutil.Process) -> bool:
    """Whether it has ended, though its parent may not have looked yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
