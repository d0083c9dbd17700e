"""Text to ids: ours beside `tokenizers`, in turns, on one core each.

    python benchmarks/data_tokenizing.py                        Python's own sources, a BPE of 32,000 ids trained on them
    python benchmarks/data_tokenizing.py --text /usr/share/doc --tokenizer tokenizer.json
    python benchmarks/data_tokenizing.py --check 1.0            exit status 1 where a figure misses its floor

Both sides give the same ids, which is checked. ours: `Encoder.encode`, lists of ids. tokenizers: `encode_batch_fast`, and the ids
taken from its encodings. Read the ratio: absolute rates are the machine's.
"""

import argparse
import os
import statistics
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

from data_prep.bpe import train_bpe
from data_prep.encoder import Encoder
from llm.data.tokenizer import parse_tokenizer

OURS, THEIRS = "ours", "tokenizers"
# million tokens per CPU-second, and times as fast as tokenizers
RATE, SPEED = 1.0, 2.0


class Rates(NamedTuple):
    """Medians, in million tokens per CPU-second, by side. encoder: which way ours went."""

    rates: dict[str, float]
    tokens: int
    encoder: str

    @property
    def speed(self) -> float:
        return self.rates[OURS] / self.rates[THEIRS]


def texts(files: list[str], megabytes: float) -> list[str]:
    """UTF-8 files, every so-manyth of them so that together they hold about `megabytes`; without files Python's own sources."""
    roots = [Path(name) for name in files] or [Path(sysconfig.get_path("stdlib"))]
    found = [path for root in roots for path in (sorted(root.rglob("*" if files else "*.py")) if root.is_dir() else [root])]
    found = [path for path in found if path.is_file() and "site-packages" not in path.parts]
    step = max(1, int(sum(path.stat().st_size for path in found) / (megabytes * 1e6)))
    read = (path.read_bytes() for path in found[::step])
    return [content.decode() for content in read if _is_text(content)]


def measure(corpus: list[str], tokenizer_json: bytes, rounds: int = 3) -> Rates:
    """Both sides in turns, 64 texts at a time, and the check that they agree."""
    encoder, reference = Encoder(tokenizer_json), parse_tokenizer(tokenizer_json)

    def theirs(batch: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in reference.encode_batch_fast(batch, add_special_tokens=False)]

    sides: dict[str, Callable[[list[str]], list[list[int]]]] = {OURS: encoder.encode, THEIRS: theirs}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    found: dict[str, list[list[int]]] = {}
    for _ in range(rounds):
        for name, encode in sides.items():
            start = time.process_time()
            found[name] = [ids for k in range(0, len(corpus), 64) for ids in encode(corpus[k : k + 64])]
            seconds[name].append(time.process_time() - start)
    assert found[OURS] == found[THEIRS], "the two sides differ"
    tokens = sum(map(len, found[OURS]))
    return Rates({name: tokens / statistics.median(taken) / 1e6 for name, taken in seconds.items()}, tokens, encoder.name)


def shortfalls(rates: Rates, share: float) -> list[str]:
    """What is below `share` of its floor."""
    asked = {"million tokens per CPU-second": (rates.rates[OURS], RATE), "times tokenizers": (rates.speed, SPEED)}
    return [
        f"{found:.2f} {unit}, at least {floor * share:.2f} are asked for"
        for unit, (found, floor) in asked.items()
        if found < floor * share
    ]


def _is_text(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs="+", default=[], metavar="FILE_OR_FOLDER")
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--megabytes", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--check", type=float, metavar="SHARE", help="of the floors that have to be reached")
    args = parser.parse_args()
    corpus = texts(args.text, args.megabytes)
    rates = measure(corpus, args.tokenizer.read_bytes() if args.tokenizer else train_bpe(corpus, 32_000), args.rounds)
    size = sum(len(text.encode()) for text in corpus)
    print(f"{len(corpus):,} texts, {size / 1e6:.1f} MB, {rates.tokens:,} tokens; ours by {rates.encoder}; medians of {args.rounds}")
    print(f"{'':<12}{'Mtok/CPU-s':>12}{'MB/CPU-s':>12}{'ours is':>9}")
    for name, rate in rates.rates.items():
        print(f"{name:<12}{rate:>12.2f}{rate * size / rates.tokens:>12.2f}{rates.rates[OURS] / rate:>8.2f}x")
    missed = shortfalls(rates, args.check) if args.check else []
    print(*missed, sep="\n", end="\n" * bool(missed))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
