"""muP's coordinate check (Yang et al., arXiv:2203.03466, appendix D.1): how far activations move in a few steps, by width.

With `model.mup_base_width` the sizes are alike at every width, so a learning rate that suits one suits all; without it the logits
and the residual stream move further the wider the model. `python benchmarks/coordinates.py [--optimizer muon]` prints both and
writes a plot.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from llm.model import Decoder
from llm.train.config import RunConfig, build_config
from llm.train.optimizer import create_optimizer, set_rates

WIDTHS, BASE, HEAD, VOCABULARY, T = (64, 128, 256, 512), 64, 16, 256, 32
RATES = {"adamw": 1e-2, "muon": 1e-2}


def config_of(width: int, base: int | None, optimizer: str) -> RunConfig:
    """Attention, Mamba-2 and mLSTM with heads of one size at every width."""
    heads = width // HEAD
    layers = {
        "a": {"mixer": {"kind": "attention", "heads": heads}, "ffn": "swiglu"},
        "m": {"mixer": {"kind": "mamba2", "heads": 2 * heads, "state": 16}, "ffn": "none"},
        "x": {"mixer": {"kind": "mlstm", "heads": heads}, "ffn": "swiglu"},
    }
    model = {"width": width, "depth": 3, "vocab_size": VOCABULARY, "layers": layers, "pattern": ["a", "m", "x"]}
    return build_config(
        {
            "name": "coordinates",
            "model": {**model, "mup_base_width": base},
            "data": {"manifest": "-"},
            "train": {"steps": 1, "batch": 4, "optimizer": {"kind": optimizer, "lr": RATES[optimizer]}},
        }
    )


def moved(config: RunConfig, steps: int = 5) -> dict[str, float]:
    """Layer -> root mean square of how far its output has moved from where it began, on the batch that it was trained on."""
    model = Decoder.create(config.model, seed=0)
    optimizer = create_optimizer(config.train.optimizer, model, 0, "fp32", 0, config.model.width_ratio)
    tokens = torch.randint(VOCABULARY, (4, T), generator=torch.Generator().manual_seed(0))
    labels = (3 * tokens + 1) % VOCABULARY
    start = outputs(model, tokens)
    for step in range(1, steps + 1):
        set_rates(optimizer, config.train.optimizer.lr, step)
        optimizer.zero_grad()
        (model(tokens, labels_BT=labels).loss_sum / labels.numel()).backward()
        optimizer.step()
    return {name: (value - start[name]).square().mean().sqrt().item() for name, value in outputs(model, tokens).items()}


@torch.no_grad()
def outputs(model: Decoder, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """The residual stream after every block, and the logits."""
    found = {}
    for name, block in zip("amx", model.blocks, strict=True):
        block.register_forward_hook(lambda _, __, out, name=name: found.update({f"block {name}": out[0]}))
    found["logits"] = model(tokens).logits
    for block in model.blocks:
        block._forward_hooks.clear()
    return found


def growth(optimizer: str, base: int | None, widths: tuple[int, ...] = WIDTHS) -> dict[str, list[float]]:
    """Layer -> how far its output moves at each width."""
    by_width = [moved(config_of(width, base, optimizer)) for width in widths]
    return {name: [values[name] for values in by_width] for name in by_width[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--optimizer", choices=RATES, default="adamw")
    parser.add_argument("--plot", type=Path, default=Path("coordinates.png"))
    given = parser.parse_args()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, base in zip(figure.subplots(1, 2, sharey=True), (None, BASE), strict=True):
        title = f"mup_base_width: {base or 'null'}"
        print(title)
        for name, sizes in growth(given.optimizer, base).items():
            print(f"  {name:10}", *(f"{size:8.4f}" for size in sizes), f"  x {sizes[-1] / sizes[0]:.2f}")
            axes.loglog(WIDTHS, sizes, marker="o", label=name)
        axes.set(title=title, xlabel="width", xticks=WIDTHS, xticklabels=WIDTHS)
        axes.minorticks_off()
    axes.legend()
    figure.axes[0].set_ylabel("moved in 5 steps (RMS)")
    figure.savefig(given.plot, dpi=120)
    print(given.plot)


if __name__ == "__main__":
    main()
