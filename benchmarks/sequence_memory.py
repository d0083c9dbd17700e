"""Activations of a long sequence on 1, 2 and 4 ranks: how much of their peak is split, by mixer.

    python benchmarks/sequence_memory.py                   the table of docs/sequence-parallel.md, in about two minutes

Two layers of each mixer between embedding and loss run forwards and backwards on real ranks; every tensor that they make counts
while it is alive. Weights and their gradients, which ZeRO splits, are not counted. The peak over SP ranks is fitted as a + b / SP.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from llm.config import build
from llm.docs import Docs
from llm.model import Decoder, ModelConfig, model_kinds
from llm.parallel import Ranks
from llm.testing import run_ranks
from llm.train.memory import LiveBytes

SIZES = (1, 2, 4)
WIDTH, VOCABULARY = 128, 512
LAYERS = {
    "attention": {"heads": 8, "kv_heads": 4},
    "attention, 3 heads": {"heads": 3, "head_dim": 32},
    "attention, window 256": {"heads": 8, "window": 256},
    "retention": {"heads": 8},
    "mamba": {},
    "mamba2": {"heads": 8, "state": 32},
    "mlstm": {"heads": 4},
    "mlstm_paper": {"heads": 4},
    "slstm": {"heads": 4},
    "lstm": {"heads": 4},
    "titans": {"heads": 4},
    "titans, mac": {"heads": 4, "variant": "mac"},
}


def peaks(rank: int, size: int, names: list[str], tokens: int, rows: int) -> list[int]:
    """Of this rank, for each of the layers."""
    return [_peak(Ranks(rank, size, states=False), name, tokens, rows) for name in names]


def _peak(ranks: Ranks, name: str, tokens: int, rows: int) -> int:
    mixer = {"kind": name.partition(",")[0], **LAYERS[name]}
    layers = {"l": {"mixer": mixer, "ffn": {"kind": "swiglu"}}}
    values = {"width": WIDTH, "depth": 2, "vocab_size": VOCABULARY, "layers": layers, "pattern": ["l"]}
    model = Decoder.create(build(ModelConfig, values, model_kinds("")), seed=0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    starts = torch.zeros(rows, tokens, dtype=torch.bool)
    starts[:, :: tokens // 3] = True
    own = torch.ones(rows, tokens // ranks.size, dtype=torch.long)
    with LiveBytes() as live:
        model(own, None, Docs(starts), own, ranks=ranks).loss_sum.backward()
    return live.peak


def measured(names: list[str], tokens: int, rows: int = 1) -> np.ndarray:
    """`[len(names), len(SIZES)]` bytes of the rank that holds the most."""
    by_size = [np.array(run_ranks(peaks, size, size, names, tokens, rows, timeout=400)).max(0) for size in SIZES]
    return np.stack(by_size, 1)


def fitted(peaks: np.ndarray) -> tuple[float, float]:
    """a and b of a + b / SP, by least squares."""
    b, a = np.polyfit(1 / np.array(SIZES), peaks, 1)
    return float(a), float(b)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    args = parser.parse_args()
    print(f"| two layers, {args.tokens:,} tokens | 1 rank | 2 ranks | 4 ranks | a | b | b / (a + b) |\n{'|---' * 7}|")
    for name, found in zip(LAYERS, measured(list(LAYERS), args.tokens), strict=True):
        a, b = fitted(found)
        sizes = " | ".join(f"{n / 1e6:.1f}" for n in (*found, a, b))
        print(f"| {name} | {sizes} | {b / (a + b):.1%} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
