"""Where the ranks of one node are: their stacks, taken from outside, also of those that are stopped.

py-spy reads them without the rank's help. Without it the rank's faulthandler writes them on SIGUSR2 into `heartbeat/rank-R.stack`;
one that is stopped is continued for that. What the kernel knows, its state and what it waits for, comes first.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

SECONDS = 20


def collect(run: Path, folder: Path) -> None:
    """Into `folder`/rank-R.txt, for every rank whose heartbeat names this host. Whatever fails, the other ranks are described."""
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
    for path in sorted((run / "heartbeat").glob("rank-*.json")):
        with suppress(OSError, ValueError, KeyError):
            beat = json.loads(path.read_text())
            if beat["host"] == socket.gethostname():
                told = describe(beat["pid"], path.stat().st_mtime, path.with_suffix(".stack"))
                (folder / f"{path.stem}.txt").write_text(f"{path.stem}, {beat['phase']} of step {beat['step']}\n{told}\n")


def describe(pid: int, alive_at: float, stack: Path) -> str:
    """alive_at: a time, since 1970, at which the rank lived; a younger process is another one."""
    try:
        process = psutil.Process(pid)
        if process.create_time() > alive_at + 1:
            return f"process {pid} is gone"
        state = process.status()
        waits = Path(f"/proc/{pid}/wchan").read_text()
    except (psutil.Error, OSError):
        return f"process {pid} is gone"
    kernel = f"process {pid} on {socket.gethostname()} is {state}" + (f", in the kernel's {waits}" if waits.strip("0") else "")
    stacks = None if state == psutil.STATUS_ZOMBIE else _spied(pid) or _asked(process, stack)
    return f"{kernel}\n{stacks or 'it wrote no stack'}"


def _spied(pid: int) -> str | None:
    """By py-spy; None where there is none, or it may not."""
    spy = shutil.which("py-spy", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if spy is None:
        return None
    with suppress(subprocess.TimeoutExpired):
        done = subprocess.run([spy, "dump", "--pid", str(pid)], capture_output=True, text=True, timeout=SECONDS, check=False)
        return done.stdout if done.returncode == 0 else None
    return None


def _asked(process: psutil.Process, stack: Path) -> str | None:
    """By the rank's own handler, which needs no lock of Python's."""
    if not stack.is_file():
        return None
    with suppress(psutil.Error):
        before = stack.stat().st_size
        process.send_signal(signal.SIGUSR2)
        process.send_signal(signal.SIGCONT)
        end, size = time.monotonic() + 5, before
        while time.monotonic() < end:
            time.sleep(0.2)
            now = stack.stat().st_size
            if now > before and now == size:
                break
            size = now
        return stack.read_text()[before:] or None
    return None
