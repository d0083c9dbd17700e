"""The grid of a needle's depth and the haystack's length: its questions, figures, and heat maps (Kamradt 2023 drew the first)."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import binomtest

from eval.figures import Figure, Result
from eval.needles.questions import Answers, Question, ask
from eval.prefill import WINDOW
from eval.subject import Subject
from llm.errors import ConfigError

PANELS = {"first": "right answer ranks first", "exact": "greedy exact match"}


@dataclass(frozen=True)
class GridConfig:
    """lengths: tokens from the first of the prompt to the last of the answer, at most. depths: rows, from the haystack's start (0)
    to its end (1). samples: of each cell. candidates: the right answer and its distractors. rows: prompts read together.
    window: tokens read at once; it bounds memory and changes no figure beyond rounding.
    """

    lengths: list[int] = field(default_factory=lambda: [128, 256, 512, 1024])
    depths: int = 5
    samples: int = 20
    candidates: int = 16
    rows: int = 8
    window: int = WINDOW
    seed: int = 0

    def check(self, positions: int | None) -> None:
        """Raises ConfigError. positions: what the model can read at most."""
        if not self.lengths or min(self.lengths) < 1:
            raise ConfigError(f"lengths ({self.lengths}) must be numbers of tokens, at least 1 each; write lengths=[128,512]")
        for name, least in (("depths", 1), ("samples", 1), ("candidates", 2), ("rows", 1), ("window", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} ({getattr(self, name)}) must be at least {least}")
        if positions is not None and max(self.lengths) > positions:
            raise ConfigError(f"lengths ({max(self.lengths)}) reach behind the model's {positions} positions; use less")

    @property
    def depth_points(self) -> list[float]:
        return np.linspace(0, 1, self.depths).tolist() if self.depths > 1 else [0.5]


def over_grid(subject: Subject, config: GridConfig, draw: Callable[[np.random.Generator, int, float], Question]) -> Result:
    """Figures of all cells. draw(rng, length, depth): a question. All ranks call it together."""
    cells = [(length, depth) for length in sorted(config.lengths) for depth in config.depth_points]
    n, together = config.samples, config.rows

    def question(k: int) -> Question:
        return draw(np.random.default_rng([config.seed, k]), *cells[k // n])

    # a batch stays in its cell, where prompts are of one length
    firsts = [(cell * n, first) for cell in range(len(cells)) for first in range(0, n, together)]
    batches = [range(cell + first, cell + min(first + together, n)) for cell, first in firsts]
    answers = ask(subject, batches, question, config.window, config.seed)
    chance = 1 / config.candidates
    found = [_cell(*cell, Answers(*(x[i * n : (i + 1) * n] for x in answers))) for i, cell in enumerate(cells)]
    whole = {key: share(_hits(answers)[key]) for key in PANELS}
    figures = {
        "ranks first": share_figure(whole["first"]),
        "chance": Figure(chance, len(answers.rank)),
        "greedy exact match": share_figure(whole["exact"]),
        "margin nats": Figure(float(answers.margin.mean()), len(answers.margin), _error(answers.margin)),
    }
    for length in sorted(config.lengths):
        of_length = np.repeat([cell[0] == length for cell in cells], n)
        figures[f"ranks first at {length}"] = share_figure(share(_hits(answers)["first"][of_length]))
    details = {"chance": chance, "whole": whole, "cells": found}
    over = f"{n} questions in each of {len(cells)} cells; chance of ranking first 1/{config.candidates}; intervals 95 % (Wilson)"
    return Result(figures, details, over)


def share(hits: np.ndarray) -> dict[str, Any]:
    """value, n and the interval in which the probability lies with 95 % (Wilson 1927)."""
    low, high = binomtest(int(hits.sum()), len(hits)).proportion_ci(method="wilson")
    return {"value": float(hits.mean()), "n": len(hits), "interval": [float(low), float(high)]}


def share_figure(found: dict[str, Any]) -> Figure:
    return Figure(found["value"], found["n"], math.sqrt(found["value"] * (1 - found["value"]) / found["n"]))


def _hits(answers: Answers) -> dict[str, np.ndarray]:
    return {"first": answers.rank == 1, "exact": answers.exact}


def _error(x: np.ndarray) -> float | None:
    return float(x.std(ddof=1) / math.sqrt(len(x))) if len(x) > 1 else None


def _cell(length: int, depth: float, answers: Answers) -> dict[str, Any]:
    shares = {key: share(hits) for key, hits in _hits(answers).items()}
    means = {"rank": float(answers.rank.mean()), "margin": float(answers.margin.mean())}
    return {"length": length, "depth": depth, **shares, **means}


def draw_grid(figure: Any, results: dict[str, dict[str, Any]]) -> None:
    """Above by likelihood, below greedily: a heat map of each model over length and depth. results: by model."""
    panels = figure.subplots(len(PANELS), len(results), squeeze=False)
    for column, (name, details) in enumerate(results.items()):
        for axes, (key, title) in zip(panels[:, column], PANELS.items(), strict=True):
            cells = [(cell["depth"], cell["length"], cell[key]["value"]) for cell in details["cells"]]
            drawn = heat_map(axes, cells, "{:.0%}".format)
            axes.set_ylabel("depth")
            chance = f" (chance {details['chance']:.3f})" if key == "first" else ""
            axes.set_title(f"{name}\n{title}{chance}", fontsize=9)
    figure.colorbar(drawn, ax=panels, shrink=0.8)


def heat_map(axes: Any, cells: list[tuple[Any, int, float]], said: Callable[[Any], str]) -> Any:
    """Rows downwards in their order, lengths to the right, from 0 to 1. cells: (row, length, value). said: of a row."""
    rows, lengths = list(dict.fromkeys(row for row, *_ in cells)), sorted({length for _, length, _ in cells})
    values = np.full((len(rows), len(lengths)), np.nan)
    for row, length, value in cells:
        values[rows.index(row), lengths.index(length)] = value
    drawn = axes.imshow(values, vmin=0, vmax=1, aspect="auto", cmap="viridis")
    axes.set_xticks(range(len(lengths)), [f"{n:,}" for n in lengths])
    axes.set_yticks(range(len(rows)), [said(row) for row in rows])
    axes.set_xlabel("tokens")
    return drawn
