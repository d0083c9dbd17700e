"""Training on one GPU: each mixer's layer beside its package's own, and whole braids with their MFU and memory.

    python benchmarks/gpu.py                                     everything, in less than 8 minutes on an H100
    python benchmarks/gpu.py --only layers --kinds mamba2 attention --tokens 4096
    python benchmarks/gpu.py --check                             exit status 1 below a target
    python benchmarks/gpu.py --device cpu --tiny                 does it run? (figures mean nothing)

bf16, forward and backward, medians of rounds in turns; a layer's packages are optional and named where they are absent. Targets: a
layer at least 0.95 times as fast as its package's, the 1.3B braid at 4096 tokens at 40 % MFU (else the profile names what holds
it). Batches hold 8192 tokens, or one longer sequence.
Rows that the time limit leaves out are said, and so is memory that does not suffice.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.gpu_sides import KINDS, Sizes, braid, ours, theirs
from llm.cost import training_flops
from llm.model import Decoder
from llm.train.peak import measured_peak
from llm.train.precision import cast_model

LAYER_TARGET, MFU_TARGET = 0.95, 0.40
# in a batch, of short sequences
TOKENS = 8192
FULL = Sizes(width=2048, heads=16, tokens=(4096, 16384, 65536), braids={"350M": (1024, 25), "1.3B": (2048, 25)})
TINY = Sizes(width=64, heads=2, tokens=(64, 128), braids={"tiny": (64, 5)})


@dataclass(frozen=True)
class Run:
    device: torch.device
    sizes: Sizes
    rounds: int
    until: float

    def late(self) -> bool:
        return time.monotonic() > self.until

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


@dataclass(frozen=True)
class Row:
    """seconds: of a forward and a backward pass. gib: peak; 0 where the device does not tell. why: there is no figure."""

    name: str
    side: str
    tokens: int
    seconds: float = float("nan")
    gib: float = 0.0
    mfu: float | None = None
    why: str = ""


def rows_of(T: int) -> int:
    return max(1, TOKENS // T)


def measured(run: Run, work: dict[str, Callable[[], Tensor]]) -> dict[str, tuple[float, float] | str]:
    """Of each side (median seconds, peak GiB), or why there are none."""
    times: dict[str, list[float]] = {}
    peaks: dict[str, float] = {}
    failed: dict[str, str] = {}
    for n in range(1 + run.rounds):
        for side in [side for side in work if side not in failed]:
            cuda = run.device.type == "cuda"
            if cuda:
                torch.cuda.reset_peak_memory_stats()
            try:
                start = run.now()
                work[side]().float().sum().backward()
                seconds = run.now() - start
            except torch.OutOfMemoryError:
                failed[side] = "out of memory"
                torch.cuda.empty_cache()
                continue
            # the first round compiles and tunes
            if n:
                times.setdefault(side, []).append(seconds)
                peaks[side] = torch.cuda.max_memory_allocated() / 2**30 if cuda else 0.0
    return {side: failed[side] if side in failed else (statistics.median(times[side]), peaks[side]) for side in work}


def layers(run: Run, kinds: list[str]) -> list[Row]:
    rows = []
    for kind in kinds:
        modules: dict[str, nn.Module] = {"braid": ours(kind, run.sizes, run.device)}
        package, module, absent = theirs(kind, run.sizes, run.device)
        if module is not None:
            modules[package] = module
        for T in run.sizes.tokens:
            if run.late():
                rows.append(Row(kind, "braid", T, why="no time left"))
                continue
            x = torch.randn(rows_of(T), T, run.sizes.width, device=run.device, dtype=torch.bfloat16, requires_grad=True)
            work = {side: lambda m=m, x=x: _first(m(x)) for side, m in modules.items()}
            for side, found in measured(run, work).items():
                rows.append(Row(kind, side, T, why=found) if isinstance(found, str) else Row(kind, side, T, *found))
            if absent:
                rows.append(Row(kind, package, T, why=absent))
            say(rows[-1])
    return rows


def _first(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


def braids(run: Run) -> list[Row]:
    rows = []
    peak = measured_peak(run.device, torch.bfloat16)
    for name, (width, depth) in run.sizes.braids.items():
        config = braid(width, depth, run.sizes)
        model = Decoder.create(config, 0, run.device)
        cast_model(model)
        for T in run.sizes.tokens:
            if run.late():
                rows.append(Row(name, "braid", T, why="no time left"))
                continue
            # activations of long sequences are made again
            model.checkpoint_activations = max(run.sizes.tokens) // 4 <= T
            tokens = torch.randint(config.vocab_size, (rows_of(T), T), device=run.device)
            work = {"braid": lambda model=model, tokens=tokens: model(tokens, labels_BT=tokens).loss_sum}
            found = measured(run, work)["braid"]
            if isinstance(found, str):
                rows.append(Row(name, "braid", T, why=found))
            else:
                flops = training_flops(config, T) * T * rows_of(T)
                rows.append(Row(name, "braid", T, *found, mfu=flops / found[0] / peak))
                if run.sizes.tokens[0] == T and name == "1.3B" and flops / found[0] / peak < MFU_TARGET:
                    profile(work["braid"])
            say(rows[-1])
    return rows


def profile(work: Callable[[], Tensor]) -> None:
    """What a step's time goes to."""
    with torch.profiler.profile() as found:
        work().backward()
    print(found.key_averages().table(sort_by="self_cuda_time_total", row_limit=12), file=sys.stderr)


def say(row: Row) -> None:
    print(f"{row.name} {row.side} T={row.tokens}: {row.why or f'{1e3 * row.seconds:.1f} ms'}", file=sys.stderr, flush=True)


def table(rows: list[Row]) -> Table:
    shown = Table()
    for heading in ("what", "side", "tokens", "ms", "tokens/s", "peak GiB", "MFU", "beside its package"):
        shown.add_column(heading)
    for row in rows:
        if row.why:
            shown.add_row(row.name, row.side, str(row.tokens), row.why)
            continue
        ratio = ratio_of(row, rows)
        shown.add_row(
            *(row.name, row.side, str(row.tokens)),
            f"{1e3 * row.seconds:.1f}",
            f"{row.tokens * rows_of(row.tokens) / row.seconds:,.0f}",
            f"{row.gib:.1f}" if row.gib else "",
            "" if row.mfu is None else f"{row.mfu:.0%}",
            f"{ratio:.2f}" if ratio else "",
        )
    return shown


def ratio_of(row: Row, rows: list[Row]) -> float | None:
    """Its package's time over ours: above 1 we are faster."""
    peers = [r for r in rows if (r.name, r.tokens) == (row.name, row.tokens) and r.side != row.side and not r.why]
    return peers[0].seconds / row.seconds if peers and row.side == "braid" else None


def shortfalls(rows: list[Row]) -> list[str]:
    """What is below its target."""
    found = []
    for row in [row for row in rows if row.side == "braid" and not row.why]:
        ratio = ratio_of(row, rows)
        if ratio is not None and ratio < LAYER_TARGET:
            found.append(
                f"{row.name} at {row.tokens} tokens: {ratio:.2f} times its package's speed, at least {LAYER_TARGET} is asked"
            )
        if row.mfu is not None and row.mfu < MFU_TARGET and (row.name, row.tokens) == ("1.3B", 4096):
            found.append(f"{row.name} at {row.tokens} tokens: {row.mfu:.0%} MFU, at least {MFU_TARGET:.0%} is asked")
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["layers", "braids"])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--tokens", nargs="+", type=int)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=7.5)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: this machine has no CUDA device; --device cpu --tiny shows that the script runs")
    torch.manual_seed(0)
    sizes = (TINY if options.tiny else FULL).at(options.tokens)
    run = Run(torch.device(options.device), sizes, options.rounds, time.monotonic() + 60 * options.minutes)
    # the braids first: they are what the limit may not cut
    rows = [] if options.only == "layers" else braids(run)
    rows += [] if options.only == "braids" else layers(run, options.kinds)
    Console(width=None if sys.stdout.isatty() else 160).print(table(rows))
    below = shortfalls(rows)
    print("\n".join(below))
    return int(options.check and bool(below))


if __name__ == "__main__":
    sys.exit(main())
