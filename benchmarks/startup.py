"""`python benchmarks/startup.py [RANKS]`: what a start costs as ranks grow - seconds and files opened, phase by phase.

Two parts, so that many ranks fit into a small machine. In the first, RANKS processes import all that training imports, `--alive` at
a time. In the second, RANKS processes, forked from one that has imported it, join a gloo group and agree on a dataset of `--shards`
shards, by the code that training starts with. Files are counted by Python's audit event `open` and calls of `os.stat`; imports also
by strace, which sees libraries too, where that is installed.
"""

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

IMPORTS = """
import sys, time
began, opened = time.time(), [0]
def count(event, _):
    opened[0] += event == "open"
sys.addaudithook(count)
sys.path.insert(0, sys.argv[1])
import launch.pretrain
from llm.train.start import quiet
quiet()
import llm.train.loop
print(time.time() - began, opened[0])
"""
Counts = dict[str, tuple[float, int]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ranks", type=int, nargs="?", default=64)
    parser.add_argument("--alive", type=int, default=8, help="processes at a time that import; 0.22 GB each")
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--node", type=int, default=8, help="ranks of a node, of which one reads the manifest")
    given = parser.parse_args()
    print(f"{given.ranks} ranks, {os.cpu_count()} cores, load {os.getloadavg()[0]:.0f}")
    found = imports(given.ranks, given.alive)
    seconds = [seconds for seconds, _ in found]
    print(f"imports: {statistics.median(seconds):.1f} s each with {given.alive} at a time (slowest {max(seconds):.1f} s), ", end="")
    print(f"{found[0][1]:,} files opened by Python{by_kernel()}")
    for ranks in sorted({2, given.ranks}):
        per_node = min(given.node, ranks)
        told = joined(ranks, per_node, given.shards)
        print(f"{ranks} ranks, {per_node} on a node:")
        for phase, (seconds, opened) in told[0].items():
            each = [counts[phase] for counts in told]
            others = max((count for rank, (_, count) in enumerate(each) if rank % per_node), default=0)
            print(f"  {phase:9} {seconds:6.2f} s (slowest {max(each)[0]:.2f} s), files opened or asked after: ", end="")
            print(f"{opened:,} by a node's first rank, {others:,} by each other, {sum(count for _, count in each):,} in all")


def imports(ranks: int, alive: int) -> list[tuple[float, int]]:
    """(seconds, files) of each process."""
    waiting, running, found = ranks, [], []
    while waiting or running:
        while waiting and len(running) < alive:
            running.append(subprocess.Popen([sys.executable, "-c", IMPORTS, str(ROOT)], stdout=subprocess.PIPE, text=True))
            waiting -= 1
        said, _ = running.pop(0).communicate()
        seconds, opened = said.split()[-2:]
        found.append((float(seconds), int(opened)))
    return found


def by_kernel() -> str:
    """Of one process: every `openat` that found a file, and those that did not."""
    if not shutil.which("strace"):
        return ""
    with tempfile.NamedTemporaryFile("r") as log:
        trace = ["strace", "-f", "-e", "trace=open,openat,stat,newfstatat,readlink,access", "-o", log.name]
        subprocess.run([*trace, sys.executable, "-c", IMPORTS, str(ROOT)], stdout=subprocess.DEVNULL, check=True)
        lines = log.readlines()
    opens = [line for line in lines if re.search(r"\bopen(at)?\(", line)]
    failed = sum("ENOENT" in line for line in opens)
    return f" (kernel: {len(opens) - failed:,} opened, {failed:,} looked for in vain, {len(lines) - len(opens):,} asked after)"


def joined(ranks: int, per_node: int, shards: int) -> list[Counts]:
    from llm.testing import run_ranks

    with tempfile.TemporaryDirectory() as folder:
        dataset(Path(folder), shards)
        return run_ranks(start, ranks, folder, per_node, timeout=500, connect=False)


def dataset(folder: Path, shards: int) -> None:
    """With so many shards, a document in each."""
    from data_prep.bpe import train_bpe
    from llm.data.manifest import Source
    from llm.data.write import DatasetWriter

    tokenizer = train_bpe(["to be or not to be"] * 9, vocabulary=300)
    writer = DatasetWriter(folder, tokenizer, {"text": Source(1.0, "CC0-1.0")}, shard_tokens=1)
    for _ in range(shards):
        writer.add("text", "train", list(range(1, 200)), text_bytes=199)
    writer.finish()


def start(rank: int, folder: str, per_node: int) -> Counts:
    """As `llm.train.start.pretrain` does it."""
    os.environ["LOCAL_RANK"] = str(rank % per_node)
    from llm.data.config import DataConfig
    from llm.train.start import agree
    from llm.train.world import World

    found: Counts = {}
    opened = [0]
    sys.addaudithook(lambda event, _: opened.__setitem__(0, opened[0] + (event == "open")))
    # no audit event: that every shard is there
    stat = os.stat

    def counted(*given: Any, **more: Any) -> os.stat_result:
        opened[0] += 1
        return stat(*given, **more)

    os.stat = counted

    @contextmanager
    def phase(name: str) -> Iterator[None]:
        began, before = time.perf_counter(), opened[0]
        yield
        found[name] = (time.perf_counter() - began, opened[0] - before)

    world = World.from_environment()
    with phase("manifest"):
        manifests = [DataConfig(manifest=folder).load_manifest()] if world.first_of_node else None
    with phase("groups"):
        world.connect()
        world.barrier()
    with phase("agreeing"):
        agree(manifests, world)
    world.close()
    return found


if __name__ == "__main__":
    main()
