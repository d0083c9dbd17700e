"""The ranks of a run as the loop sees them: who this process is, its device, and a few collectives on plain values."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class World:
    """rank, size: of all processes. device: where this rank computes."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def from_environment(cls) -> "World":
        """From RANK, WORLD_SIZE and LOCAL_RANK, before a process group exists."""
        rank, size, local = (int(os.environ.get(name, default)) for name, default in PLACE.items())
        if not torch.cuda.is_available():
            return cls(rank, size, torch.device("cpu"))
        torch.cuda.set_device(local)
        return cls(rank, size, torch.device("cuda", local))

    @property
    def first_of_node(self) -> bool:
        """Whether this rank does for its node what need not be done by each."""
        return first_of_node(os.environ)

    @property
    def first(self) -> bool:
        """Whether this rank speaks and writes for all."""
        return self.rank == 0

    def connect(self, minutes: float = 30) -> bool:
        """Start the process group, NCCL on CUDA and gloo otherwise; False when there is one already.

        deepspeed is imported here, because importing it takes seconds.
        """
        import deepspeed
        from deepspeed import init_distributed

        # Its shared-memory op serves inference only. Left on, it is compiled at the first start (a minute, needs g++), and a start
        # that is killed meanwhile leaves a lock on which all later ones wait for ever.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        own = not dist.is_initialized()
        backend = "nccl" if self.device.type == "cuda" else "gloo"
        init_distributed(dist_backend=backend, auto_mpi_discovery=False, timeout=timedelta(minutes=minutes), verbose=False)
        return own

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over the ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def all(self, verdict: bool) -> bool:
        """Whether every rank says yes."""
        return self.sum(torch.tensor(int(not verdict), device=self.device)).item() == 0

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def tell(self, value: Any) -> Any:
        """The first rank's value, on every rank."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def share(self, items: Sequence[Any]) -> Sequence[Any]:
        """This rank's part of a list that all ranks hold."""
        return items[self.rank :: self.size]


def first_of_node(environment: Mapping[str, str]) -> bool:
    """With a GPU of its own for each task, LOCAL_RANK is 0 everywhere; under `srun torchrun`, SLURM_LOCALID is."""
    return environment.get("LOCAL_RANK", "0") == "0" and environment.get("SLURM_LOCALID", "0") == "0"


PLACE = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}


def say(world: World, *sentences: str) -> None:
    """On the first rank only."""
    if world.first:
        for sentence in sentences:
            print(sentence, flush=True)
