"""How long a start takes, phase by phase, from the process's first moment to its first step.

    start-up: imports 4.1 s, manifest 0.2 s, groups 1.3 s, load 2.0 s, kernels 0.4 s, first step 3.4 s: 11.4 s in all
    start-up: imports took rank 37 on gpu12 41.0 s

report/start-up.jsonl has a line per start: seconds of rank 0, and of each phase's slowest rank.
"""

import json
import socket
import time
from pathlib import Path

import psutil

from llm.train.world import World, say

NAME = "start-up.jsonl"
# a rank is named that took so many times what rank 0 did, and so many seconds more
FACTOR, SECONDS = 2.0, 5.0


class StartUp:
    """Each phase ends where the next one begins; one that comes twice adds up."""

    def __init__(self) -> None:
        # in the time of the system, as a process's beginning is
        self._last = psutil.Process().create_time()
        self.seconds: dict[str, float] = {}

    def done(self, name: str) -> None:
        now = time.time()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now

    def first_step(self, kernels: float, folder: Path, world: World) -> None:
        """The end of a start, told on the first rank and in a line in `folder`; later ones are no news. All ranks call it together.

        kernels: seconds that went into compiling and loading them, a phase of its own.
        """
        if "first step" in self.seconds:
            return
        self.done("first step")
        if kernels:
            self.seconds |= {"kernels": kernels, "first step": max(0.0, self.seconds["first step"] - kernels)}
        told = world.gather((self.seconds, socket.gethostname()))
        slowest = {name: max(range(world.size), key=lambda rank: told[rank][0].get(name, 0.0)) for name in self.seconds}
        each = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in self.seconds.items())
        say(world, f"start-up: {each}: {sum(self.seconds.values()):.1f} s in all")
        for name, rank in slowest.items():
            theirs, host = told[rank][0].get(name, 0.0), told[rank][1]
            if theirs > max(FACTOR * self.seconds[name], self.seconds[name] + SECONDS):
                say(world, f"start-up: {name} took rank {rank} on {host} {theirs:.1f} s")
        if world.first:
            slow = {
                name: {"rank": rank, "host": told[rank][1], "seconds": told[rank][0].get(name)} for name, rank in slowest.items()
            }
            line = {"time": time.time(), "ranks": world.size, "seconds": self.seconds, "slowest": slow}
            with (folder / NAME).open("a") as file:
                file.write(json.dumps(line) + "\n")
