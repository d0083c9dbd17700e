"""For tests: a function run on several ranks of this machine."""

import io
import multiprocessing
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import DupFd
from typing import Any

import torch
import torch.distributed as dist

LOOPBACK = "127.0.0.1"
# imported once per test process; ranks are forked from it in a moment
PRELOADED = ["torch", "deepspeed"]


class RankFailed(AssertionError):
    """A rank raised, died or ran out of time; the message holds its traceback."""


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 60, connect: bool = True) -> list[Any]:
    """`function(rank, *args)` on `world_size` new processes joined by gloo over loopback; their return values in rank order.

    RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT are set; each rank computes with one thread. No rank outlives the
    call: they are forked from a server that has imported torch and DeepSpeed, and computed nothing.

    Args:
        function: importable by name, as are its arguments' types. timeout: seconds, for all. connect: False leaves the process
            group to the function.

    Raises:
        RankFailed: with the traceback of the first rank that failed.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    processes = []
    # the server's environment is that of its start
    environment = dict(os.environ) | {"MASTER_ADDR": LOOPBACK, "MASTER_PORT": str(free_port())}
    results: dict[int, Any] = {}
    for rank in range(world_size):
        receiver, sender = context.Pipe(duplex=False)
        given = (sender, _Outputs(), function, rank, world_size, environment, connect, args)
        process = context.Process(target=_rank, args=given, daemon=True)
        process.start()
        sender.close()
        processes.append((process, receiver))
    try:
        _collect(processes, results, time.monotonic() + timeout, timeout)
    finally:
        for process, receiver in processes:
            process.join(5 if len(results) == world_size else 0)
            if process.is_alive():
                process.kill()
                process.join()
            receiver.close()
    return [results[rank] for rank in range(world_size)]


def _collect(processes: list, results: dict[int, Any], end: float, timeout: float) -> None:
    waiting = {receiver: rank for rank, (_, receiver) in enumerate(processes)}
    while waiting:
        ready = wait(list(waiting), timeout=max(0.0, end - time.monotonic()))
        if not ready:
            raise RankFailed(f"ranks {sorted(waiting.values())} did not finish in {timeout:.0f} s")
        for receiver in ready:
            assert isinstance(receiver, Connection)
            rank = waiting.pop(receiver)
            results[rank] = _receive(receiver, rank, processes[rank][0])


def _receive(receiver: Connection, rank: int, process: Any) -> Any:
    try:
        failed, content = receiver.recv()
    except EOFError:
        process.join()
        raise RankFailed(f"rank {rank} died with exit code {process.exitcode}") from None
    if failed:
        raise RankFailed(f"rank {rank} failed:\n{content}")
    return torch.load(io.BytesIO(content), weights_only=False)


class _Outputs:
    """This process's stdout and stderr, which a rank takes over: the server's are those of its own start."""

    def __reduce__(self) -> tuple:
        return _take_over, (DupFd(1), DupFd(2))


def _take_over(*outputs: Any) -> None:
    for descriptor, output in enumerate(outputs, 1):
        given = output.detach()
        os.dup2(given, descriptor)
        os.close(given)


def _rank(
    sender: Connection,
    outputs: None,  # taken over as it arrived
    function: Callable,
    rank: int,
    world_size: int,
    environment: dict[str, str],
    connect: bool,
    args: tuple,
) -> None:
    os.environ.clear()
    os.environ |= environment | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    torch.set_num_threads(1)
    try:
        if connect:
            dist.init_process_group("gloo", rank=rank, world_size=world_size)
        buffer = io.BytesIO()
        torch.save(function(rank, *args), buffer)
        sender.send((False, buffer.getvalue()))
        if dist.is_initialized():
            dist.destroy_process_group()
    except BaseException:
        sender.send((True, traceback.format_exc()))
        sys.exit(1)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return probe.getsockname()[1]
