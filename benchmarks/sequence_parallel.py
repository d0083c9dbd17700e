"""What splitting sequences over ranks sends: bytes per token and layer for every mixer and way to cross, from shapes alone.

    python benchmarks/sequence_parallel.py                 the table of docs/sequence-parallel.md

tests/parallel/test_traffic.py shows that these figures are, to the byte, what ranks hand to the process group.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from llm.mixers import MIXERS
from llm.mixers.ops import ops_of
from llm.parallel.plan import choose, sent, sent_back

LAYERS = {
    "attention": {"heads": 16, "kv_heads": 4},
    "attention, 4 heads": {"heads": 4},
    "attention, window 2048": {"heads": 16, "kv_heads": 4, "window": 2048},
    "retention": {"heads": 16},
    "mamba": {},
    "mamba2": {"heads": 32, "state": 128},
    "mlstm": {"heads": 8},
    "mlstm_paper": {"heads": 8},
    "slstm": {"heads": 8},
    "slstm, 4 heads": {"heads": 4},
    "lstm": {"heads": 8},
    "titans": {"heads": 16},
    "titans, mac": {"heads": 16, "variant": "mac"},
}
LENGTHS = (4096, 65_536, 1_048_576)


def per_token(kind: str, settings: dict, width: int, size: int, length: int, mode: str) -> float | None:
    """Bytes that all ranks send per token, forward and backward; None: the mixer does not cross so."""
    ops, tokens = ops_of(MIXERS[kind][0](**settings), width), length // size
    refused = {"state": lambda op: not op.affine, "heads": lambda op: op.family != "conv" and op.heads < size}
    if mode in refused and any(map(refused[mode], ops)):
        return None
    crossings = [choose(op, size, tokens, mode) for op in ops]
    return (
        sum(way(op, crossing, size, tokens) for op, crossing in zip(ops, crossings, strict=True) for way in (sent, sent_back))
        / length
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--ranks", type=int, default=8)
    args = parser.parse_args()
    print(f"| layer | tokens | heads | state | pipelined | auto | heads / state |\n{'|---' * 7}|")
    for name, settings in LAYERS.items():
        for length in LENGTHS:
            found = [
                per_token(name.partition(",")[0], settings, args.width, args.ranks, length, mode)
                for mode in ("heads", "state", "pipelined", "auto")
            ]
            ratio = "" if found[1] is None or found[0] is None else f"{found[0] / found[1]:,.1f}"
            cells = ["" if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.2g}" for value in found]
            print(f"| {name} | {length:,} | {' | '.join(cells)} | {ratio} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
