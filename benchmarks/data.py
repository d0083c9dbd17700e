"""Reading a dataset: ours beside webdataset's way of one .npy per document, in turns, on one core, in CPU seconds.

    python benchmarks/data.py                          the whole table; report/data.json
    python benchmarks/data.py --tokens 2 --rounds 1    small
    python benchmarks/data.py --check 1.0              exit status 1 where a figure misses its floor

Both sides hand out batches of 8 rows of 2,048 tokens with labels, as int64, from documents whose lengths are like the web's
(log-normal). Ours are permuted over all sequences, with every block checked; webdataset shuffles a buffer of 1,000 documents and
cuts the concatenated arrays, and resumes by skipping. Read the ratios: absolute times are the machine's.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import webdataset

from data_prep.bpe import train_bpe
from eval.report import write_report
from llm.data import Batches, DataConfig, Manifest, TokenStream
from llm.data.lanes import LaneOrder
from llm.data.manifest import Source
from llm.data.plan import planned
from llm.data.write import DatasetWriter

T, ROWS, VOCABULARY = 2048, 8, 1 << 15
OURS, PEER = "ours, concat", "webdataset, .npy"
PACKINGS = ("concat", "bestfit", "contiguous")
# figure -> (floor or ceiling, whether it is a floor)
ASKED = {
    "Mtok per CPU second": (30.0, True),
    "times webdataset": (3.0, True),
    "resume at 0 %, s": (0.2, False),
    "resume at 50 %, s": (0.2, False),
    "resume at 99 %, s": (0.2, False),
    "seek in 1e9 sequences, ms": (5.0, False),
    "shard bytes / raw tokens": (1.01, False),
    "bestfit padding": (0.005, False),
    "pairs of one shard / random": (1.2, False),
}


def write(folder: Path, tokens: int) -> Manifest:
    """The same documents as a dataset of ours, in shards of 2^22 tokens, and as `npy.tar`."""
    rng, left = np.random.default_rng(0), tokens
    writer = DatasetWriter(folder, tokenizer(), {"web": Source(1.0, "CC0-1.0")}, shard_tokens=1 << 22)
    with webdataset.TarWriter(str(folder.with_name("npy.tar"))) as tar:
        while left > 0:
            ids = rng.integers(1, VOCABULARY, int(np.clip(rng.lognormal(6.6, 1.2), 1, 100_000)))
            writer.add("web", "train", ids, 4 * len(ids))
            tar.write({"__key__": f"{left:012d}", "npy": np.concatenate([[0], ids]).astype(np.uint16)})
            left -= len(ids) + 1
    return writer.finish()


def tokenizer() -> bytes:
    """Ids up to VOCABULARY; no text is encoded with it."""
    content = json.loads(train_bpe(["a"], 257))
    content["model"]["vocab"] |= {f"filler{k}": k for k in range(len(content["model"]["vocab"]), VOCABULARY)}
    return json.dumps(content).encode()


def ours(manifest: Manifest, packing: str) -> Iterator[int]:
    """Scored labels of each batch."""
    config = DataConfig(str(manifest.root), T, packing, workers=0)
    for micro_batches in Batches(TokenStream(manifest, "train", config, 0, ROWS), ROWS, 0, 1, ROWS):
        yield micro_batches[0].labels_BT.numel()


def theirs(tar: Path) -> Iterator[int]:
    left = np.empty(0, dtype=np.int64)
    need = ROWS * T + 1
    while True:
        for sample in webdataset.WebDataset(str(tar), shardshuffle=False).shuffle(1000).decode():
            left = np.concatenate([left, sample["npy"].astype(np.int64)])
            while len(left) >= need:
                rows = left[: need - 1].reshape(ROWS, T).copy(), left[1:need].reshape(ROWS, T).copy()
                left = left[need - 1 :]
                yield rows[1].size


def rate(batches: Iterator[int], tokens: int) -> float:
    """Millions of tokens per CPU second, over about `tokens` of them."""
    start, done = time.process_time(), 0
    while done < tokens:
        done += next(batches)
    return done / (time.process_time() - start) / 1e6


def resume(manifest: Manifest, share: float) -> float:
    """Seconds from the folder to the first batch at this share of an epoch."""
    start = time.perf_counter()
    stream = TokenStream(Manifest.load(manifest.root), "train", DataConfig(str(manifest.root), T, workers=0), 0)
    next(Batches(stream, ROWS, 0, 1, ROWS, consumed=int(share * len(stream))))
    return time.perf_counter() - start


def seek() -> float:
    """Milliseconds for a batch's places in the middle of a billion sequences."""
    order = LaneOrder({"a": 7 * 10**8, "b": 3 * 10**8}, {"a": 0.7, "b": 0.3}, seed=0, lanes=64)
    start = time.perf_counter()
    order(np.arange(5 * 10**8, 5 * 10**8 + 512))
    return 1e3 * (time.perf_counter() - start)


def pairs_of_one_shard(sequences: int = 10**7, shards: int = 2000, batch: int = 1024, batches: int = 50) -> float:
    """Pairs of rows from one shard within a global batch, over what a uniform shuffle gives."""
    order, same = LaneOrder({"a": sequences}, {"a": 1.0}, seed=0, lanes=64), 0.0
    for first in np.random.default_rng(0).integers(0, sequences // batch, batches) * batch:
        counts = np.bincount(order(np.arange(first, first + batch)).sequence * shards // sequences)
        same += float((counts * (counts - 1)).sum())
    uniform = (sequences / shards - 1) / (sequences - 1)
    return same / (batches * batch * (batch - 1)) / uniform


def measure(folder: Path, tokens: int, rounds: int) -> dict[str, float]:
    manifest = write(folder / "dataset", tokens)
    sides: dict[str, Callable[[], Iterator[int]]] = {
        **{f"ours, {packing}": lambda packing=packing: ours(manifest, packing) for packing in PACKINGS},
        PEER: lambda: theirs(folder / "npy.tar"),
    }
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            batches = side()
            # the first batches open files and check the indices
            list(islice(batches, 4))
            rates[name].append(rate(batches, tokens // 2))
    found = {name: statistics.median(values) for name, values in rates.items()}
    skipping = theirs(folder / "npy.tar")
    start = time.perf_counter()
    list(islice(skipping, tokens // 2 // (ROWS * T)))
    plan = planned(manifest, "train", T)
    return {
        **{f"{name}, Mtok per CPU second": value for name, value in found.items()},
        "Mtok per CPU second": found[OURS],
        "times webdataset": found[OURS] / found[PEER],
        **{f"resume at {100 * share:.0f} %, s": resume(manifest, share) for share in (0.0, 0.5, 0.99)},
        "webdataset, resume at 50 % by skipping, s": time.perf_counter() - start,
        "seek in 1e9 sequences, ms": min(seek() for _ in range(5)),
        "shard bytes / raw tokens": sum(shard.bytes for shard in manifest.shards) / (2 * manifest.totals("train").tokens),
        "bestfit padding": plan.padding,
        "pairs of one shard / random": pairs_of_one_shard(),
    }


def shortfalls(found: dict[str, float], share: float) -> list[str]:
    """What misses `share` of its floor, or its ceiling over `share`."""
    missed = []
    for name, (asked, floor) in ASKED.items():
        bound = asked * share if floor else asked / share
        if found[name] < bound if floor else found[name] > bound:
            missed.append(f"{name} is {found[name]:.4g}, {'at least' if floor else 'at most'} {bound:.4g} is asked for")
    return missed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, default=64, help="of the dataset, in millions")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--check", type=float, metavar="SHARE", help="of the floors that have to be reached")
    parser.add_argument("--out", type=Path, default=Path("report"), metavar="FOLDER")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder), int(args.tokens * 1e6), args.rounds)
    for name, value in found.items():
        asked = f"   asked: {'>=' if ASKED[name][1] else '<='} {ASKED[name][0]:g}" if name in ASKED else ""
        print(f"{name:<46}{value:>12.4g}{asked}")
    write_report(args.out / "data.json", {"figures": found, "tokens": args.tokens, "rounds": args.rounds, "asked": ASKED})
    missed = shortfalls(found, args.check) if args.check else []
    print(*missed, sep="\n", end="\n" * bool(missed))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
