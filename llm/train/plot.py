"""The loss curve as a picture."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any


def plot_loss(records: list[dict[str, Any]], path: Path, title: str, rollbacks: Sequence[int] = ()) -> None:
    """Training and validation loss over tokens, as a PNG; dotted lines between phases, and red ones at `rollbacks`: tokens to which
    the run went back.
    """
    from matplotlib.figure import Figure

    if not records:
        return
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel="tokens", ylabel="loss (nats per token)", title=title)
    axes.plot([r["tokens"] for r in records], [r["loss"] for r in records], lw=1, label="training")
    held_out = [r for r in records if "validation_loss" in r]
    if held_out:
        axes.plot([r["tokens"] for r in held_out], [r["validation_loss"] for r in held_out], "o-", ms=3, label="validation")
    for before, after in pairwise(records):
        if before.get("phase") != after.get("phase"):
            axes.axvline(before["tokens"], color="gray", ls=":", lw=1)
    for tokens in rollbacks:
        axes.axvline(tokens, color="tab:red", ls=":", lw=1, label="rollback" if tokens == rollbacks[0] else None)
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
