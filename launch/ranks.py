"""Which rank this process is, settled before any process group exists.

Three sources, in this order: the environment that `torchrun`, `deepspeed` or a person set (RANK, WORLD_SIZE, ...; left as it is),
SLURM's own variables under `srun`, and otherwise a world of one. Nothing here imports torch or opens a connection.
"""

import os
import re
import socket
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass

from llm.errors import ConfigError

PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LOOPBACK = "127.0.0.1"
# Below 32768, where Linux begins to hand out ports for outgoing connections.
FIRST_PORT, PORTS = 20000, 12000


@dataclass(frozen=True)
class Place:
    """A process's place in the world, and where it was read: "environment", "slurm" or "alone"."""

    rank: int
    local_rank: int
    world_size: int
    source: str


def settle(environment: MutableMapping[str, str] | None = None) -> Place:
    """Complete RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in `environment` (the process's own by default).

    Calling it twice changes nothing. Raises ConfigError when the sources contradict each other, or when the head node of a
    job on several nodes is unknown: it never falls back to the local host there, which would train several worlds of one.
    """
    environment = os.environ if environment is None else environment
    if "RANK" in environment:
        source, found = "environment", _from_launcher(environment)
    elif _is_srun_task(environment):
        source, found = "slurm", _from_slurm(environment)
    else:
        source, found = "alone", _alone(environment)
    environment.update(found)
    rank, world_size = (_number(environment, name) for name in ("RANK", "WORLD_SIZE"))
    if rank >= world_size:
        raise ConfigError(f"RANK ({rank}) must be below WORLD_SIZE ({world_size}); correct the variables that start this rank")
    return Place(rank, _number(environment, "LOCAL_RANK"), world_size, source)


def without_local_rank(argv: Sequence[str]) -> list[str]:
    """`argv` without `--local_rank=N`, which DeepSpeed's launcher adds; the environment says the same."""
    kept: list[str] = []
    words = iter(argv)
    for word in words:
        if word in ("--local_rank", "--local-rank"):
            next(words, None)
        elif not word.startswith(("--local_rank=", "--local-rank=")):
            kept.append(word)
    return kept


def first_host(nodelist: str) -> str:
    """The first host of a SLURM node list: `n[07-09,12],login` -> `n07`. Raises ConfigError."""
    first = re.match(r"(?:[^,\[\]]|\[[^\[\]]*\])+", nodelist.strip())
    host = re.sub(r"\[([^\]\-,]+)[^\]]*\]", r"\1", first.group()) if first else ""
    if not re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", host):
        raise ConfigError(f"SLURM's node list ({nodelist!r}) names no first host; set MASTER_ADDR to the host of rank 0")
    return host


def _from_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """Nothing to add, except a LOCAL_RANK that one rank per node can do without."""
    missing = [name for name in PLACE if name not in environment and name != "LOCAL_RANK"]
    if missing:
        raise ConfigError(
            f"RANK ({environment['RANK']}) is set but {', '.join(missing)} not; set all of {', '.join(PLACE)}, or none and "
            "start with srun, deepspeed or torchrun"
        )
    # Under `srun torchrun` and `srun deepspeed`, SLURM counts launchers and WORLD_SIZE counts ranks.
    launcher = "TORCHELASTIC_RUN_ID" in environment or "CROSS_RANK" in environment
    if not launcher and environment.get("SLURM_PROCID") == environment["RANK"]:
        _check_tasks(environment)
    return {} if "LOCAL_RANK" in environment else {"LOCAL_RANK": environment.get("SLURM_LOCALID", "0")}


def _is_srun_task(environment: Mapping[str, str]) -> bool:
    """A batch script has SLURM_PROCID and SLURM_NTASKS too, but no step: alone it would wait for ranks that nobody started."""
    if "SLURM_PROCID" not in environment:
        return False
    tasks = environment.get("SLURM_NTASKS", "1")
    if "SLURM_STEP_ID" not in environment and tasks != "1":
        raise ConfigError(f"SLURM_NTASKS ({tasks}) ranks are to run but srun did not start this one; write srun before the command")
    return "SLURM_STEP_ID" in environment


def _check_tasks(environment: Mapping[str, str]) -> None:
    world_size, tasks = environment.get("WORLD_SIZE"), environment.get("SLURM_NTASKS")
    if world_size is not None and tasks is not None and world_size != tasks:
        raise ConfigError(
            f"WORLD_SIZE ({world_size}) must equal SLURM_NTASKS ({tasks}); unset WORLD_SIZE or start that many tasks with srun -n"
        )


def _from_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    _check_tasks(environment)
    tasks = _number(environment, "SLURM_NTASKS")
    # With --gpus-per-task each task sees its one GPU as device 0, whatever its place on the node.
    own_gpu = re.fullmatch(r"[^,]+", environment.get("CUDA_VISIBLE_DEVICES", "")) is not None
    return {
        "RANK": str(_number(environment, "SLURM_PROCID")),
        "LOCAL_RANK": "0" if own_gpu else str(_number(environment, "SLURM_LOCALID")),
        "WORLD_SIZE": str(tasks),
        "MASTER_ADDR": environment.get("MASTER_ADDR") or _head_node(environment, tasks),
        "MASTER_PORT": environment.get("MASTER_PORT") or _job_port(environment, tasks),
    }


def _head_node(environment: Mapping[str, str], tasks: int) -> str:
    """The host of rank 0: the first of the step's nodes."""
    counts = (environment.get(name) for name in ("SLURM_STEP_NUM_NODES", "SLURM_NNODES", "SLURM_JOB_NUM_NODES"))
    if tasks == 1 or next((count for count in counts if count), None) == "1":
        return LOOPBACK
    nodelist = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    if not nodelist:
        raise ConfigError("SLURM_JOB_NODELIST is not set in a job of several tasks; set MASTER_ADDR to the host of rank 0")
    host = first_host(nodelist)
    try:
        socket.gethostbyname(host)
    except OSError as error:
        law = f"the head node ({host}) has no address here: {error}"
        raise ConfigError(f"{law}; set MASTER_ADDR to an address that all nodes reach") from None
    return host


def _job_port(environment: Mapping[str, str], tasks: int) -> str:
    """The same on all ranks of a step, and another one for the job's other steps and for other jobs."""
    if tasks == 1:
        return free_port()
    job, step = _number(environment, "SLURM_JOB_ID"), _number(environment, "SLURM_STEP_ID")
    return str(FIRST_PORT + (job * 17 + step) % PORTS)


def _alone(environment: Mapping[str, str]) -> dict[str, str]:
    if environment.get("WORLD_SIZE", "1") != "1":
        raise ConfigError(
            f"WORLD_SIZE ({environment['WORLD_SIZE']}) is set but RANK is not; unset it, or start with srun, deepspeed or torchrun"
        )
    here = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": LOOPBACK}
    return here | {"MASTER_PORT": environment.get("MASTER_PORT") or free_port()}


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return str(probe.getsockname()[1])


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    if not value.isdigit():
        raise ConfigError(f"{name} ({value or 'not set'}) must be a number, 0 or more; start with srun, deepspeed or torchrun")
    return int(value)
