"""Forward and backward of the chunked gated linear recurrence against causal attention and the layer's projections, in turns.

    python benchmarks/linear.py [--threads 2]

One layer of width 512, 8 heads, batch 1, float32. Medians of interleaved rounds; read the ratios, the rest is the machine.
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

from llm.ops.linear import chunk

WIDTH, HEADS, ROUNDS = 512, 8, 7


def sides(tokens: int) -> dict[str, Callable[[], torch.Tensor]]:
    K = WIDTH // HEADS
    q, k, v = (torch.randn(1, tokens, HEADS, K, requires_grad=True) for _ in range(3))
    gates = (-torch.rand(1, tokens, HEADS)).requires_grad_()
    fixed = torch.log1p(-(2.0 ** (-5.0 - torch.arange(HEADS))))
    state = torch.zeros(1, HEADS, K, K)
    x, weights = torch.randn(tokens, WIDTH, requires_grad=True), [torch.randn(WIDTH, WIDTH, requires_grad=True) for _ in range(4)]
    heads_first = [t.transpose(1, 2) for t in (q, k, v)]
    return {
        "projections": lambda: torch.stack([(x @ w).sum() for w in weights]).sum(),
        "attention": lambda: F.scaled_dot_product_attention(*heads_first, is_causal=True).sum(),
        "fixed decay": lambda: chunk.linear(q, k, v, fixed, state)[0].sum(),
        "gated decay": lambda: chunk.linear(q, k, v, gates, state)[0].sum(),
    }


def measure(tokens: int) -> dict[str, float]:
    """Median milliseconds of each side."""
    run, seconds = sides(tokens), {}
    for _ in range(ROUNDS + 1):
        for name, side in run.items():
            start = time.perf_counter()
            side().backward()
            seconds.setdefault(name, []).append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(times[1:]) for name, times in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    torch.set_num_threads(parser.parse_args().threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; ms, and the ratio to attention")
    for tokens in (512, 2048, 8192):
        found = measure(tokens)
        print(
            f"T {tokens:5}  " + "  ".join(f"{name} {ms:8.1f} ({found['attention'] / ms:5.2f}x)" for name, ms in found.items()),
            flush=True,
        )


if __name__ == "__main__":
    main()
