"""The checkout under test, and copies of it that a test may build in, run in and throw away."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def files() -> list[Path]:
    """Tracked files and new ones that git does not ignore, relative to the root."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=30).stdout.split("\0")
    return [Path(name) for name in names if name and (ROOT / name).is_file()]


def copy_to(folder: Path) -> Path:
    """A copy of the checkout without environments, runs and caches."""
    for file in files():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / file, folder / file)
    return folder


def environment(**more: str) -> dict[str, str]:
    """This process's environment with the commands of the running Python first on PATH."""
    commands = str(Path(sys.executable).parent)
    return os.environ | {"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"} | more


def run(command: list[str], cwd: Path, timeout: float, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run to the end, output joined; when time is up, stop the command and the processes that it started."""
    with subprocess.Popen(
        command,
        cwd=cwd,
        env=env or environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            output += f"\nstopped after {timeout} s"
    return subprocess.CompletedProcess(command, process.returncode, output)
