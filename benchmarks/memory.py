"""Forward and backward of the neural memory in chunks, against its definition token by token and the layer's projections, in turns.

    python benchmarks/memory.py [--threads 2]

One layer of width 512, 8 heads, batch 1, chunks of 64, float32. Medians of interleaved rounds; read the ratios, the rest is the
machine. `packed` holds documents of 200 tokens: the padding of their last chunks is in its time.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.nn import functional as F

from llm.ops.memory import chunk, naive

WIDTH, HEADS, CHUNK, ROUNDS, DOCUMENT = 512, 8, 64, 7, 200


def sides(tokens: int) -> dict[str, Callable[[], torch.Tensor]]:
    K = WIDTH // HEADS
    q, k, v = (torch.randn(1, tokens, HEADS, K) for _ in range(3))
    gates = [F.logsigmoid(torch.randn(1, tokens, HEADS) + b) for b in (4.0, 0.0)] + [torch.rand(1, tokens, HEADS) / CHUNK]
    streams = [x.requires_grad_() for x in (F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, *gates)]
    x, weights = torch.randn(tokens, WIDTH, requires_grad=True), [torch.randn(WIDTH, WIDTH, requires_grad=True) for _ in range(4)]

    def memory(op: Callable, sizes: list[tuple[int, int]], position: torch.Tensor | None = None) -> Callable[[], torch.Tensor]:
        initial = tuple((i**-0.5 * torch.randn(HEADS, i, o)).requires_grad_() for i, o in sizes)
        zeros = tuple(torch.zeros(1, HEADS, i, o) for i, o in sizes)
        return lambda: op(*streams, initial, naive.Memory(zeros, zeros, zeros), position, chunk=CHUNK)[0].sum()

    return {
        "projections": lambda: torch.stack([(x @ w).sum() for w in weights]).sum(),
        "token by token": memory(naive.memory, [(K, K)]),
        "linear": memory(chunk.memory, [(K, K)]),
        "packed": memory(chunk.memory, [(K, K)], torch.arange(tokens)[None] % DOCUMENT),
        "two matrices": memory(chunk.memory, [(K, 2 * K), (2 * K, K)]),
    }


def measure(tokens: int, rounds: int) -> dict[str, float]:
    """Median milliseconds of each side."""
    run, seconds = sides(tokens), {}
    for _ in range(rounds + 1):
        for name, side in run.items():
            start = time.perf_counter()
            side().backward()
            seconds.setdefault(name, []).append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(times[1:]) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; ms, and how many times faster than token by token")
    for tokens in (512, 2048):
        found = measure(tokens, args.rounds)
        slow = found["token by token"]
        print(f"T {tokens:5}  " + "  ".join(f"{name} {ms:8.1f} ({slow / ms:6.2f}x)" for name, ms in found.items()), flush=True)


if __name__ == "__main__":
    main()
