"""Near-duplicates from texts to the list of documents to drop: ours beside datasketch, in turns, on one core each.

    python benchmarks/dedup.py                                   the whole table
    python benchmarks/dedup.py --documents 500 --rounds 1
    python benchmarks/dedup.py --check 1.0                       exit status 1 where a figure misses its floor

Pieces of Python's own sources, of about 3,000 characters as a page of the web has, a quarter of them copies in which some words are
replaced. Both sides read the same texts as 5-grams of the same normalised words, with 112 values in 14 bands of 8. Ours is all of
`find_duplicates`: exact hashes, files, clusters and report. datasketch's is its bulk signatures and its index, filled and asked in
memory: once with its own hash (SHA-1), once with xxh32, the faster. Recall: the share dropped of the copies whose exact Jaccard
similarity to the original is at least 0.9. Read the ratios: absolute times are the machine's.
"""

import argparse
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ["RAYON_NUM_THREADS"] = "1"

import numpy as np
import xxhash

from data_prep.clean import Report
from data_prep.dedup import DedupConfig, find_duplicates
from data_prep.readers import PythonStdlib, ReadLog
from data_prep.signatures import Document
from data_prep.words import normalise
from tests.peers import peers

OURS, CONFIG, CHARACTERS = "ours", DedupConfig(), 3000
# speed over the faster of datasketch's, and recall
SPEED, RECALL = 3.0, 0.999

Side = Callable[[list[Document]], set[str]]


def pieces() -> Iterator[str]:
    for record in PythonStdlib(tests=True).records(ReadLog("stdlib", Report())):
        yield from (record.text[k : k + CHARACTERS] for k in range(0, len(record.text), CHARACTERS))


def corpus(count: int) -> tuple[list[Document], list[str]]:
    """Documents in no order, and the ids of those with a Jaccard similarity of 0.9 or more to one of a lower id."""
    rng = random.Random(0)
    texts = sorted(set(pieces()))
    rng.shuffle(texts)
    texts = texts[: count - count // 4]
    documents = [Document(f"{k:06d}", "stdlib", text) for k, text in enumerate(texts)]
    near = []
    for k in range(count // 4):
        original = documents[rng.randrange(len(texts))]
        words = original.text.split(" ")
        for _ in range(rng.choice((1, 2, 3, 10, 50))):
            words[rng.randrange(len(words))] = "".join(rng.choices("abcdefghij", k=8))
        copy = Document(f"{len(texts) + k:06d}", "copies", " ".join(words))
        documents.append(copy)
        a, b = set(shingles(original.text)), set(shingles(copy.text))
        if a | b and len(a & b) >= 0.9 * len(a | b):
            near.append(copy.id)
    rng.shuffle(documents)
    return documents, near


def shingles(text: str) -> list[bytes]:
    words = normalise(text).split()
    return [b" ".join(words[k : k + CONFIG.words]) for k in range(len(words) - CONFIG.words + 1)]


def ours(documents: list[Document]) -> set[str]:
    with tempfile.TemporaryDirectory() as work:
        found = find_duplicates(documents, CONFIG, Path(work))
    return {document.id for document in documents if found.reason(document.id)}


def datasketch(hash_of: Callable[[bytes], int] | None) -> Side:
    """Drops a document that shares a band with one of a lower id, of the documents sorted by id."""
    minhash, lsh = _datasketch("minhash").MinHash, _datasketch("lsh").MinHashLSH
    values = CONFIG.bands * CONFIG.rows

    def run(documents: list[Document]) -> set[str]:
        index, dropped = lsh(num_perm=values, params=(CONFIG.bands, CONFIG.rows)), set()
        documents = sorted(documents)
        sets = (set(shingles(document.text)) for document in documents)
        signatures = minhash.generator(sets, num_perm=values, hashfunc=hash_of)
        for document, signature in zip(documents, signatures, strict=True):
            if not signature.is_empty():
                if index.query(signature):
                    dropped.add(document.id)
                index.insert(document.id, signature)
        return dropped

    return run


def _datasketch(name: str) -> ModuleType:
    """It imports scipy for the choice of bands, which is made here already."""
    scipy, integrate = ModuleType("scipy"), ModuleType("scipy.integrate")
    integrate.quad = None
    with patch.dict(sys.modules, {"scipy": scipy, "scipy.integrate": integrate}):
        return peers.load(f"datasketch.{name}")


def sides() -> dict[str, Side]:
    return {OURS: ours, "datasketch": datasketch(None), "datasketch, xxh32": datasketch(xxhash.xxh32_intdigest)}


def measure(documents: list[Document], rounds: int) -> tuple[dict[str, float], dict[str, set[str]]]:
    """Median CPU seconds of each side, and what it drops."""
    times: dict[str, list[float]] = {}
    dropped = {}
    for _ in range(rounds):
        for name, side in sides().items():
            start = time.process_time()
            dropped[name] = side(documents)
            times.setdefault(name, []).append(time.process_time() - start)
    return {name: statistics.median(found) for name, found in times.items()}, dropped


def shortfalls(seconds: dict[str, float], recall: float, share: float) -> list[str]:
    """What is below `share` of its floor; recall is never scaled."""
    ratio = min(s for name, s in seconds.items() if name != OURS) / seconds[OURS]
    found = [f"{ratio:.2f}x datasketch, at least {SPEED * share:.2f}x is asked for"] if ratio < SPEED * share else []
    return found + ([f"recall {recall:.4f}, at least {RECALL} is asked for"] if recall < RECALL else [])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=8000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--check", type=float, metavar="SHARE", help="of the floors that have to be reached")
    args = parser.parse_args()
    documents, near = corpus(args.documents)
    size = sum(len(document.text.encode()) for document in documents)
    seconds, dropped = measure(documents, args.rounds)
    print(f"{len(documents):,} documents, {size / 1e6:.1f} MB, {len(near):,} copies of 0.9 or more; medians of {args.rounds}")
    print(f"{'':<18}{'documents/s':>12}{'MB/s':>8}{'ours is':>9}{'dropped':>9}{'recall':>8}")
    recalls = {name: float(np.mean([id in ids for id in near])) for name, ids in dropped.items()}
    for name, s in seconds.items():
        rates = f"{len(documents) / s:>12,.0f}{size / s / 1e6:>8.2f}{s / seconds[OURS]:>8.2f}x"
        print(f"{name:<18}{rates}{len(dropped[name]):>9,}{recalls[name]:>8.4f}")
    missed = shortfalls(seconds, recalls[OURS], args.check) if args.check else []
    print(*missed, sep="\n", end="\n" * bool(missed))
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
