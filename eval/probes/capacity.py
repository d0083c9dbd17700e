"""State capacity: how many bits of what it has read a model still holds, against how much it was given.

A document is a list of n random tokens, and the same list again. The list holds n log2 A bits, A being the ids it is drawn from;
what the model pays for the second reading is at least what its state has lost. So

    bits held >= n log2 A - bits of the second reading          (a bound on the state's information about the list)

which grows with n while everything fits, and bends where the state is full; a cache never is. A model that does not repeat what
it reads holds no bits by this measure, whatever its state may contain: `saved`, the bits of the first reading less those of the
second, tells the two apart.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eval.figures import Figure, Result
from eval.models.language_model import LanguageModel
from eval.needles.words import NOUNS
from eval.score import score
from eval.subject import Subject
from eval.windows import cut, offsets
from llm.errors import ConfigError


@dataclass(frozen=True)
class CapacityConfig:
    """lengths: n. samples: lists of each length. lanes, window: rows and tokens of a batch; they change no figure."""

    lengths: list[int] = field(default_factory=lambda: [8, 16, 32, 64, 128, 256])
    samples: int = 16
    lanes: int = 8
    window: int = 1024
    seed: int = 0

    def check(self, positions: int | None) -> None:
        """Raises ConfigError. positions: what the model can read at most."""
        if not self.lengths or min(self.lengths) < 2:
            raise ConfigError(f"lengths ({self.lengths}) must be numbers of tokens, at least 2 each; write lengths=[8,64]")
        for name in ("samples", "lanes", "window"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} ({getattr(self, name)}) must be at least 1")
        if positions is not None and 2 * max(self.lengths) >= positions:
            raise ConfigError(f"lengths ({max(self.lengths)}) twice reach behind the model's {positions} positions; use less")


def capacity(subject: Subject, config: CapacityConfig) -> Result:
    """Raises ConfigError."""
    config.check(subject.model.positions)
    ids, lengths = alphabet(subject.model), sorted(config.lengths)
    documents = [
        draw(subject.model.opening, ids, n, np.random.default_rng([config.seed, n, k]))
        for n in lengths
        for k in range(config.samples)
    ]
    sizes = np.array([len(document) for document in documents])
    scores = score(subject, documents, cut(sizes, "stream", config.window, config.window), config.lanes, config.window)
    begins, figures, rows = offsets(sizes), {}, []
    for i, n in enumerate(lengths):
        of_length = range(i * config.samples, (i + 1) * config.samples)
        bits = np.array([scores.nats[begins[k] : begins[k + 1]].reshape(2, n).sum(1) for k in of_length]) / math.log(2)
        given = n * math.log2(len(ids))
        held = given - bits[:, 1]
        row = {
            "length": n,
            "given_bits": given,
            "held_bits": max(0.0, float(held.mean())),
            "saved_bits": float((bits[:, 0] - bits[:, 1]).mean()),
            "standard_error": _error(held),
            "state_bytes": subject.model.predicted_state_bytes(n + 1),
        }
        figures[f"bits held of {n} tokens"] = Figure(row["held_bits"], config.samples, row["standard_error"])
        rows.append(row)
    figures["most bits held"] = max(figures.values(), key=lambda figure: figure.value)
    over = f"lists of {len(ids)} ids, {math.log2(len(ids)):.2f} bits a token, read twice; {config.samples} of each length"
    return Result(figures, {"rows": rows, "ids": len(ids)}, over)


def alphabet(model: LanguageModel) -> np.ndarray:
    """The ids that common nouns are spelt with: tokens that text is made of, whatever the tokenizer."""
    return np.unique([token for noun in NOUNS for token in model.encode(f" {noun}")])


def draw(opening: int, ids: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    drawn = rng.choice(ids, n)
    return np.concatenate([[opening], drawn, drawn]).astype(np.int32)


def _error(x: np.ndarray) -> float | None:
    return float(x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else None


def draw_capacity(figure: Any, results: dict[str, dict[str, Any]]) -> None:
    """Bits held against bits given, both logarithmic; the state's size in the legend. results: by model."""
    axes = figure.subplots()
    for name, details in results.items():
        rows = details["rows"]
        given = [row["given_bits"] for row in rows]
        size = rows[-1]["state_bytes"]
        label = name if size is None else f"{name} (state {8 * size:,} bits at {rows[-1]['length']})"
        axes.errorbar(
            given, [row["held_bits"] for row in rows], [row["standard_error"] or 0.0 for row in rows], marker=".", label=label
        )
    axes.plot(given, given, "k:", lw=0.8, label="everything")
    axes.set(xscale="log", yscale="symlog", xlabel="bits of the list", ylabel="bits held, at least")
    axes.grid(alpha=0.3)
    axes.legend()
