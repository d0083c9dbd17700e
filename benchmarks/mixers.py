"""Forward and backward of every mixer, its core and its whole layer, beside other projects' of the same operator, in turns.

    python benchmarks/mixers.py                                       the whole table
    python benchmarks/mixers.py --only mamba slstm --tokens 2048
    python benchmarks/mixers.py --check 1.0                           exit status 1 where a ratio is below its floor
    python benchmarks/mixers.py --memory                              peak memory of each layer at 8192 tokens

Medians of interleaved rounds, of ratios those of each round's. Read the ratios: absolute times are the machine's. `bound` is how
much of the rate of large matrix products the core's or layer's products alone reach; where those are not the work (scans, cells) it
says little. `growth` is the time for four times the tokens, over that of four projections of the width, in turns with it. Memory
once had is kept by all sides: else each tensor above 32 MiB would be had from the system anew, page by page, and the longest runs
would measure that.
"""

import argparse
import ctypes
import json
import statistics
import sys
import time
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from benchmarks.comparisons import CORES, LAYERS, OURS, Comparison, Side, Sides
from llm.train.peak import measured_peak
from llm.train.precision import computes_in_bf16

TABLES = {"core": CORES, "layer": LAYERS}
TOKENS, GROWTH, PROJECTIONS = (512, 2048, 8192), 1.1, "projections"
# of all sides together, on average, for each round asked for
SECONDS = 0.5
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def keep_memory() -> None:
    """glibc's allocator neither maps large tensors one by one nor gives memory back."""
    M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)


def seconds(side: Side) -> float:
    start = time.perf_counter()
    side().float().sum().backward()
    return time.perf_counter() - start


def measure(
    comparison: Comparison, tokens: int, dtype: torch.dtype, rounds: int, more: Sides | None = None
) -> tuple[float, dict[str, float | None]]:
    """(our median seconds, how many times as long each other side and `more` take; None: it cannot run in this dtype).

    All sides take turns, and turns to be first; a ratio is the median of the rounds'. Where rounds are short, there are as many as
    take SECONDS for each that was asked for; ours and `more` go on until theirs do, where the others are slow.
    """
    torch.manual_seed(0)
    sides = comparison.sides(tokens, dtype)
    if comparison.peers_until is not None and tokens > comparison.peers_until:
        sides = {OURS: sides[OURS]}
    sides |= more or {}
    ratios: dict[str, float | None] = {}
    for name in list(sides):
        try:
            seconds(sides[name])
        except Exception as error:
            if name == OURS:
                raise
            print(f"  ({name} does not run in {dtype}: {str(error).splitlines()[0][:90]})", flush=True)
            del sides[name]
            ratios[name] = None
    turns: list[dict[str, float]] = []
    for group in ([*sides], [OURS, *more]) if more else ([*sides],):
        while len(turns) < rounds or sum(turn.get(name, 0.0) for turn in turns for name in group) < rounds * SECONDS:
            first = len(turns) % len(group)
            turns.append({name: seconds(sides[name]) for name in group[first:] + group[:first]})
    ratios |= {name: statistics.median(turn[name] / turn[OURS] for turn in turns if name in turn) for name in sides if name != OURS}
    return statistics.median(turn[OURS] for turn in turns), ratios


def timed(table: str, name: str, dtype_name: str, tokens: int, rounds: int, peak: float) -> dict:
    """The row of one comparison; recurrent layers run beside the projections. peak: the rate of large matrix products, FLOP/s."""
    comparison, dtype = TABLES[table][name], DTYPES[dtype_name]
    grows = table == "layer" and comparison.recurrent
    beside = {PROJECTIONS: LAYERS[PROJECTIONS].sides(tokens, dtype)[OURS]} if grows else {}
    ours, others = measure(comparison, tokens, dtype, rounds, beside)
    bound = 3 * comparison.work * tokens / peak / ours
    row = {"table": table, "mixer": name, "dtype": dtype_name, "tokens": tokens, "rounds": rounds, "peak": peak}
    return row | {"ms": 1e3 * ours, "bound": bound, "others": others}


def rows(args: argparse.Namespace):
    """One per comparison, dtype and length."""
    for dtype_name in args.dtypes:
        peak = measured_peak(torch.device("cpu"), DTYPES[dtype_name], seconds=1.0)
        for table in args.tables:
            for name in TABLES[table]:
                if args.only and name.split(",")[0] not in args.only:
                    continue
                for tokens in args.tokens:
                    yield timed(table, name, dtype_name, tokens, args.rounds, peak)


def line(row: dict) -> str:
    others = ", ".join(f"{peer} {'-' if ratio is None else f'{ratio:.2f}x'}" for peer, ratio in row["others"].items())
    return (
        f"| {row['table']} | {row['mixer']} | {row['dtype']} | {row['tokens']} | {row['ms']:.1f} | {row['bound']:.0%} | {others} |"
    )


def growths(found: list[dict]) -> list[dict]:
    """Per recurrent layer: time at 4 T over time at T, over the same of the projections, which ran in turns with it."""
    layers = {(r["mixer"], r["dtype"], r["tokens"]): r for r in found if PROJECTIONS in r["others"]}
    results = []
    for (name, dtype, tokens), row in layers.items():
        if longer := layers.get((name, dtype, 4 * tokens)):
            ratio = row["others"][PROJECTIONS] / longer["others"][PROJECTIONS]
            growth = {"growth": longer["ms"] / row["ms"], "ratio": ratio, "rows": [row, longer]}
            results.append({"mixer": name, "dtype": dtype, "tokens": tokens} | growth)
    return results


def shortfalls(found: list[dict], factor: float) -> dict[str, list[dict]]:
    """Sentences, each with its rows: what is below `factor` times its floor."""
    missed = {}
    for row in found:
        floors = TABLES[row["table"]][row["mixer"]].floors
        for peer, ratio in row["others"].items():
            floor = floors.get((peer, row["tokens"]))
            if floor and ratio is not None and ratio < factor * floor:
                where = f"{row['table']} {row['mixer']} {row['dtype']} T={row['tokens']}"
                missed[f"{where}: {ratio:.3f}x {peer}, at least {factor * floor:.2f}x is asked for"] = [row]
    for row in growths(found):
        if row["ratio"] > GROWTH / factor:
            where = f"layer {row['mixer']} {row['dtype']} {row['tokens']} to {4 * row['tokens']}"
            sentence = f"{where}: grows {row['ratio']:.3f}x as the projections do, at most {GROWTH / factor:.2f}x is allowed"
            missed[sentence] = row["rows"]
    return missed


def held_to_floors(found: list[dict], factor: float) -> list[str]:
    """What falls short of its floor twice: a machine that is busy for some seconds fails no floor.

    The second time, the rows have twice the rounds, and replace the first in `found`.
    """
    for sentence, rows_of in shortfalls(found, factor).items():
        print(f"once more: {sentence}", flush=True)
        for row in rows_of:
            where = row["table"], row["mixer"], row["dtype"], row["tokens"]
            at = next(n for n, r in enumerate(found) if (r["table"], r["mixer"], r["dtype"], r["tokens"]) == where)
            if found[at] is row:
                found[at] = timed(*where, 2 * row["rounds"], row["peak"])
                print(line(found[at]), flush=True)
    return list(shortfalls(found, factor))


def peak_bytes(name: str, side: str, tokens: int, result) -> None:
    """In a process of its own: how far memory rises above that of inputs and weights, forward and backward."""
    torch.manual_seed(0)
    run = LAYERS[name].sides(tokens, torch.float32)[side]
    status = Path("/proc/self/status")
    # a short run first: libraries, compiled loops and threads come with it
    LAYERS[name].sides(64, torch.float32)[side]().sum().backward()
    Path("/proc/self/clear_refs").write_text("5")
    before = kilobytes(status.read_text(), "VmRSS")
    run().sum().backward()
    result.put(1024 * (kilobytes(status.read_text(), "VmHWM") - before))


def kilobytes(status: str, key: str) -> int:
    return int(next(text for text in status.splitlines() if text.startswith(key)).split()[1])


def memory(args: argparse.Namespace) -> list[dict]:
    context, found = get_context("spawn"), []
    print("| layer | side | peak MiB above inputs and weights | ratio to ours |\n|---|---|---|---|")
    for name, comparison in LAYERS.items():
        if args.only and name.split(",")[0] not in args.only:
            continue
        ours = None
        for side in comparison.sides(16, torch.float32):
            queue = context.Queue()
            process = context.Process(target=peak_bytes, args=(name, side, max(args.tokens), queue))
            process.start()
            process.join()
            if process.exitcode:
                print(f"| {name} | {side} | out of memory | |", flush=True)
                continue
            size = queue.get()
            ours = ours or size
            found.append({"mixer": name, "side": side, "tokens": max(args.tokens), "bytes": size})
            print(f"| {name} | {side} | {size / 2**20:.0f} | {size / ours:.2f}x |", flush=True)
    return found


def main() -> int:
    native = computes_in_bf16(torch.device("cpu"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", help="mixers")
    parser.add_argument("--tables", nargs="*", default=list(TABLES), choices=TABLES)
    parser.add_argument("--tokens", nargs="*", type=int, default=list(TOKENS))
    parser.add_argument("--dtypes", nargs="*", choices=DTYPES, default=list(DTYPES) if native else ["fp32"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--check", type=float, metavar="FACTOR", help="1.0: the floors themselves; less: a regression check")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--out", type=Path, help="a JSON file for all figures")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not args.memory:
        keep_memory()
    found, missed = [], []
    if args.memory:
        found = memory(args)
    else:
        print(
            f"torch {torch.__version__}, {args.threads} threads{'' if native else '; bf16 is no instruction of this CPU: left out'}"
        )
        print("| | mixer | dtype | T | ms | bound | how many times as long others take |\n|---|---|---|---|---|---|---|")
        for row in rows(args):
            found.append(row)
            print(line(row), flush=True)
        missed = held_to_floors(found, args.check) if args.check else []
        for row in growths(found):
            name, ratio = f"{row['mixer']} {row['dtype']} {row['tokens']} x 4", row["ratio"]
            print(f"growth {name}: {row['growth']:.2f}, {ratio:.2f} of the projections'")
        print(*missed, sep="\n", file=sys.stderr)
    if args.out:
        args.out.write_text(json.dumps({"torch": torch.__version__, "threads": args.threads, "rows": found}, indent=1))
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
