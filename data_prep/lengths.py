"""How long documents are: a histogram by source, in four bins an octave, and its plot."""

import io
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from data_prep.stages.tokenizer import SPLITS
from data_prep.stages.tokens import lengths
from data_prep.stages.work import Work
from llm.whole_file import write_bytes

# 2^40 tokens are more than any document has
EDGES = 2 ** (np.arange(161) / 4)


def histogram(work: Work) -> dict[str, np.ndarray]:
    """int64 [bins], documents by their tokens, the document token among them, of each source that has any."""
    found: dict[str, np.ndarray] = {}
    for part, source in enumerate(work.sources):
        for split in SPLITS:
            counts, _ = np.histogram(lengths(work, part, split)[0], EDGES)
            found[source] = found.get(source, 0) + counts
    return {source: counts for source, counts in found.items() if counts.any()}


def plot(counts: dict[str, np.ndarray], path: Path) -> None:
    """The same bytes for the same counts."""
    figure = Figure(figsize=(8, 4))
    axes = figure.add_axes((0.09, 0.13, 0.89, 0.84), xscale="log", yscale="log", xlabel="tokens of a document", ylabel="documents")
    filled = np.flatnonzero(sum(counts.values()))
    low, high = filled[0], filled[-1] + 1
    for source, mine in counts.items():
        axes.stairs(mine[low:high], EDGES[low : high + 1], label=source, linewidth=1.5)
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = io.BytesIO()
    # without the name and version of the library
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    write_bytes(path, buffer.getvalue())
