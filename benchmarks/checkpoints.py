"""How fast checkpoints are saved, verified and loaded over several ranks, what training waits for, and the same for 7B parameters.

    python benchmarks/checkpoints.py                                                          # two ranks, 2.1 GB below $TMPDIR
    torchrun --nproc_per_node 8 benchmarks/checkpoints.py --gb 84 --folder /scratch/me        # or under srun

The ranks save stand-ins for the float32 masters and AdamW's moments as ZeRO 3 holds them and load them as ZeRO 1 does, so that each
rank reads from every file. The page cache is emptied of the files before they are read. What is written is deleted afterwards.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import torch.distributed as dist

from launch.ranks import settle
from llm.testing import run_ranks
from llm.train import checkpoint_files as files
from llm.train.checkpoint import damage, pieces_of
from llm.train.config import load_config
from llm.train.fragments import Fragment
from llm.train.run_folder import RunFolder
from llm.train.save import Saver
from llm.train.shards import fill, states_of, weights_of
from llm.train.world import World

ROOT = Path(__file__).resolve().parents[1]
ELEMENTS = 1 << 24
BYTES_PER_PARAMETER = 12
SEVEN_BILLION = 7e9
ROUNDS = 3


def part(name: str, start: int, stop: int, source: torch.Tensor) -> Fragment:
    """Elements of a matrix; all parts share one memory, so that the host copy is what takes memory."""
    values = source[: stop - start]
    return Fragment(name, (ELEMENTS,), start, values, {"exp_avg": values, "exp_avg_sq": values}, {"step": [1.0]})


def measure(rank: int, ranks: int, gb: float, folder: Path) -> dict[str, float]:
    """Seconds, of the slowest rank: median of the rounds."""
    world, source = World(rank, ranks, torch.device("cpu")), torch.randn(ELEMENTS)
    matrices = [f"matrix.{k}" for k in range(max(ranks, round(gb * 1e9 / BYTES_PER_PARAMETER / ELEMENTS)))]
    size = -(-ELEMENTS // ranks)
    held = [part(name, rank * size, min(ELEMENTS, (rank + 1) * size), source) for name in matrices]
    wanted = [part(name, 0, ELEMENTS, source) for name in world.share(matrices)]
    run = RunFolder(folder)
    if world.first:
        for path in (run.config, run.tokenizer, run.versions):
            path.write_text("{}\n")
    world.barrier()
    config = load_config([str(ROOT / "configs/exp/tiny.yaml"), "train.keep_last=1"])
    saver, found = Saver(run, config, world), []
    for step in range(1, ROUNDS + 1):
        began = time.perf_counter()
        saver.save(held, step, {})
        saver.copied()
        times = {"training waits": time.perf_counter() - began}
        saver.finish()
        times["save"] = time.perf_counter() - began
        checkpoint = run.checkpoints / files.name_of(step)
        times["verify"] = timed(damage, checkpoint, world)
        times["load"] = timed(load, checkpoint, world, wanted)
        found.append({name: max(world.gather(value)) for name, value in times.items()})
    saver.close()
    return {
        "GB": len(matrices) * ELEMENTS * BYTES_PER_PARAMETER / 1e9,
        **{name: sorted(times[name] for times in found)[ROUNDS // 2] for name in found[0]},
    }


def load(checkpoint: Path, world: World, wanted: list[Fragment]) -> None:
    fill(pieces_of(checkpoint, files.WEIGHTS, world), weights_of(wanted))
    fill(pieces_of(checkpoint, files.OPTIMIZER, world), states_of(wanted))


def timed(work: Callable, checkpoint: Path, world: World, *more: object) -> float:
    forget(checkpoint)
    world.barrier()
    began = time.perf_counter()
    work(checkpoint, world, *more)
    return time.perf_counter() - began


def forget(checkpoint: Path) -> None:
    """Drop the files' pages from this machine's memory."""
    for path in checkpoint.rglob("*.safetensors"):
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def report(found: dict[str, float], ranks: int) -> None:
    gb = found.pop("GB")
    print(f"{gb:.2f} GB over {ranks} ranks; of AdamW at 7B parameters: {SEVEN_BILLION * BYTES_PER_PARAMETER / 1e9:.0f} GB\n")
    print("| | seconds | GB/s | at 7B, the same ranks and disks |\n|---|---|---|---|")
    for name, seconds in found.items():
        whole = SEVEN_BILLION * BYTES_PER_PARAMETER / 1e9 * seconds / gb
        print(f"| {name} | {seconds:.3f} | {gb / seconds:.2f} | {whole:.0f} s |")
    print(f"\ntraining waits for {found['training waits'] / found['save']:.1%} of a save")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=2.1, help="size of the checkpoint")
    parser.add_argument("--ranks", type=int, default=2, help="where no launcher has started any")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where to write: the disks to measure")
    args = parser.parse_args()
    place = settle()
    if place.source == "alone":
        with tempfile.TemporaryDirectory(dir=args.folder, prefix="braid-checkpoints-") as folder:
            report(run_ranks(measure, args.ranks, args.ranks, args.gb, Path(folder), timeout=3600)[0], args.ranks)
        return 0
    dist.init_process_group("gloo")
    names = [tempfile.mkdtemp(dir=args.folder, prefix="braid-checkpoints-") if place.rank == 0 else ""]
    dist.broadcast_object_list(names)
    found = measure(place.rank, place.world_size, args.gb, Path(names[0]))
    if place.rank == 0:
        report(found, place.world_size)

        shutil.rmtree(names[0])
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main())
