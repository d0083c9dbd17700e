"""The program, frozen into a run folder, so that what is edited while a job waits in the queue changes nothing of it."""

import json
import shutil
import subprocess
from pathlib import Path

from llm.train.run_folder import FROZEN, git_state

ROOT = Path(__file__).resolve().parents[2]
# of a checkout; an installed wheel holds the packages, with configs and scripts inside
PACKAGES, BESIDE = ("data_prep", "eval", "launch", "llm"), ("configs", "slurm")


def freeze(folder: Path) -> None:
    """Packages, configs and scripts into `folder`, in place of what is there; `git.json` and `changes.diff` say what they are."""
    building = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(building, ignore_errors=True)
    building.mkdir(parents=True)
    checkout = (ROOT / "pyproject.toml").is_file()
    for name in (*PACKAGES, *(BESIDE if checkout else ())):
        shutil.copytree(ROOT / name, building / name, ignore=shutil.ignore_patterns("__pycache__"))
    state = git_state(ROOT) if checkout else None
    (building / FROZEN).write_text(json.dumps(state, indent=1) + "\n")
    if state is not None:
        (building / "changes.diff").write_bytes(_git("diff", "--binary", "HEAD"))
    shutil.rmtree(folder, ignore_errors=True)
    building.replace(folder)


def _git(*words: str) -> bytes:
    return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, timeout=60, check=True).stdout
