"""What a task sees of its node by itself: disks, devices, code and versions."""

import hashlib
import os
import shutil
import socket
import sys
import tempfile
import uuid
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import torch

from launch.nodes.judge import RUN_FOLDER
from launch.nodes.limits import Limits
from launch.nodes.report import Report
from launch.ranks import Place
from llm.train.world import first_of_node

ROOT = Path(__file__).resolve().parents[2]
CODE = ("launch", "llm", "eval", "data_prep")
PACKAGES = ("torch", "deepspeed", "numpy", "omegaconf", "safetensors", "tokenizers", "triton")
DRIVER = Path("/proc/driver/nvidia/version")
GIGABYTE = 10**9


def look(place: Place, run: Path, limits: Limits, environment: Mapping[str, str] | None = None) -> Report:
    """Everything that needs no other task. Disks and code are looked at by one task of a node."""
    environment = os.environ if environment is None else environment
    fault, facts = _device(place, environment)
    faults = {"device": fault} if fault else {}
    if first_of_node(environment):
        for what, folder, gigabytes, way_out in (
            ("temporary folder", Path(tempfile.gettempdir()), limits.tmp_gb, "clean it, or set TMPDIR"),
            (RUN_FOLDER, run, limits.run_gb, "make room, or choose another with runs=FOLDER"),
        ):
            fault = _disk(folder, gigabytes)
            faults |= {what: f"{what} {fault}; {way_out}"} if fault else {}
        facts |= {"code": code_hash(ROOT)} | _versions()
    return Report(place.rank, place.world_size, host_name(environment), faults, facts)


def host_name(environment: Mapping[str, str]) -> str:
    """As SLURM calls the node, which is what can be excluded."""
    return environment.get("SLURMD_NODENAME") or socket.gethostname()


def code_hash(root: Path) -> str:
    """Of every file that computes, where this task reads it."""
    digest = hashlib.sha256()
    for path in sorted(path for part in CODE for suffix in ("py", "cpp", "h") for path in (root / part).rglob(f"*.{suffix}")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _versions() -> dict[str, str]:
    found = {"python": ".".join(map(str, sys.version_info[:3]))}
    if DRIVER.is_file():
        found["driver"] = DRIVER.read_text().splitlines()[0]
    if torch.cuda.is_available():
        found["NCCL"] = ".".join(map(str, torch.cuda.nccl.version()))
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def _disk(folder: Path, gigabytes: float) -> str | None:
    """What is wrong with a folder: no file can be written and read back, or too little is free."""
    path = folder / f".health-{uuid.uuid4().hex}"
    try:
        content = os.urandom(1 << 20)
        with path.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if path.read_bytes() != content:
            return f"{folder} gives back other bytes than were written"
        free = shutil.disk_usage(folder).free / GIGABYTE
    except OSError as error:
        return f"{folder} cannot be written ({error.strerror})"
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)
    return None if free >= gigabytes else f"{folder} ({free:.1f} GB free) must have {gigabytes:g} GB free"


def _device(place: Place, environment: Mapping[str, str]) -> tuple[str | None, dict[str, str]]:
    """What is wrong with this task's device, and facts."""
    seen, granted = torch.cuda.device_count(), environment.get("SLURM_GPUS_ON_NODE", "")
    facts = {"devices": f"{seen} x {torch.cuda.get_device_name(0)}" if seen else "none"}
    if not (torch.version.cuda or torch.version.hip):
        return None, facts
    if not seen and granted.isdigit() and int(granted):
        return f"{granted} GPU(s) are granted and torch sees none; load their driver", facts
    if seen and place.local_rank >= seen:
        return f"local rank {place.local_rank} has no GPU, of {seen} that torch sees; start fewer tasks per node", facts
    return (_works(place.local_rank) if seen else None), facts


def _works(index: int) -> str | None:
    """What is wrong with a GPU: a product of small whole numbers, exact in float32, is another one or does not come."""
    try:
        x = torch.arange(1 << 16, device=torch.device("cuda", index)).view(256, 256).remainder(7).float()
        return None if torch.equal((x @ x).cpu(), x.cpu() @ x.cpu()) else f"GPU {index} multiplies wrongly; have it replaced"
    except RuntimeError as error:
        return f"GPU {index} fails ({str(error).splitlines()[0]}); reset it or have it replaced"
