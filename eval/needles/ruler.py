"""RULER's family (eval/needles/family.py) at several lengths: a model writes on greedily, and its text is searched for the answers.

score    of a text: the share of references that it contains, whatever their case, as RULER scores these tasks (`all`); or whether
         it contains one of them (`any`, RULER's score of questions whose answer can be said in several ways)
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from eval.figures import Figure, Result
from eval.harness.generation import continuations
from eval.needles.family import KINDS
from eval.needles.fit import Prompt, fitted, most_units
from eval.needles.grid import heat_map
from eval.needles.haystack import NOISE, read_haystack
from eval.subject import Subject
from eval.texts import TextConfig
from llm.errors import ConfigError, did_you_mean
from llm.generate import Sampling

# texts of each kind and length that a report shows
SHOWN = 2
SCORES: dict[str, Callable[[list[bool]], Any]] = {"all": np.mean, "any": any}


def score_of(text: str, references: list[str], score: str) -> float:
    return float(SCORES[score]([reference.lower() in text.lower() for reference in references]))


@dataclass(frozen=True)
class RulerConfig(TextConfig):
    """kinds: of `KINDS`. lengths: tokens of prompt and answer. samples: of each. haystack: `text` is what TextConfig names, where a
    task asks for text; `noise` needs none. score: over references. rows: prompts read together.
    """

    kinds: list[str] = field(default_factory=lambda: list(KINDS))
    lengths: list[int] = field(default_factory=lambda: [1024, 2048, 4096])
    samples: int = 20
    haystack: Literal["text", "noise"] = "text"
    score: Literal["all", "any"] = "all"
    rows: int = 4

    def check_lengths(self, positions: int | None) -> None:
        """Raises ConfigError. positions: what the model can read at most."""
        for kind in self.kinds:
            if kind not in KINDS:
                raise ConfigError(f"kinds ({kind}) is unknown; {did_you_mean(kind, KINDS)}")
        if not self.kinds or not self.lengths:
            raise ConfigError(f"kinds ({self.kinds}) and lengths ({self.lengths}) must not be empty; leave them out")
        if min(self.samples, self.rows) < 1:
            raise ConfigError(f"samples ({self.samples}) and rows ({self.rows}) must be at least 1")
        if positions is not None and max(self.lengths) > positions:
            raise ConfigError(f"lengths ({max(self.lengths)}) reach behind the model's {positions} positions; use less")


def ruler(subject: Subject, config: RulerConfig) -> Result:
    """The score of every kind at every length. All ranks call it together. Raises ConfigError, DataError."""
    config.check()
    config.check_lengths(subject.model.positions)
    haystack = NOISE if config.haystack == "noise" else subject.agreed(lambda: read_haystack(subject, config))
    cells = [(kind, length) for kind in config.kinds for length in sorted(config.lengths)]
    # before any model runs, so that a length that is too short is known at once
    units = subject.agreed(lambda: [_units(subject, cell, haystack, config.seed) for cell in cells])
    scores, texts = np.zeros((len(cells), config.samples)), []
    batches = [(c, first) for c in range(len(cells)) for first in range(0, config.samples, config.rows)]
    mine = subject.world.share(batches)
    with subject.progress("ruler", len(mine)) as advance:
        for cell, first in mine:
            kind, length = cells[cell]
            numbers = range(first, min(first + config.rows, config.samples))
            drawn = [_drawn(subject, cells[cell], units[cell], haystack, config.seed, k) for k in numbers]
            sampling = Sampling(tokens=KINDS[kind].answer, temperature=0)
            written = continuations(subject.model, [ids for ids, _ in drawn], sampling, [], config.rows)
            for k, text, (ids, references) in zip(numbers, written, drawn, strict=True):
                scores[cell, k] = score_of(text, references, config.score)
                if k < SHOWN:
                    shown = {"references": references, "text": text, "tokens": len(ids), "score": scores[cell, k]}
                    texts.append({"kind": kind, "length": length, **shown})
            advance(1)
    scores = subject.world.sum(torch.from_numpy(scores).to(subject.world.device)).cpu().numpy()
    every = [text for of_rank in subject.world.gather(texts) for text in of_rank]
    return _result(cells, scores, every)


def _drawn(subject: Subject, cell: tuple[str, int], units: int, haystack: list[str], seed: int, k: int) -> Prompt:
    """Sample k, within its length."""
    kind, length = KINDS[cell[0]], cell[1]
    return fitted(lambda size: _prompt(subject, cell, size, haystack, seed, k), units, length - kind.answer, kind.least)


def _prompt(subject: Subject, cell: tuple[str, int], size: int, haystack: list[str], seed: int, k: int) -> Prompt:
    kind, length = cell
    rng = np.random.default_rng([seed, k, list(KINDS).index(kind), length])
    item = KINDS[kind].make(rng, size, length, haystack)
    return Prompt([subject.model.opening, *subject.model.encode(item.text)], item.references)


def _units(subject: Subject, cell: tuple[str, int], haystack: list[str], seed: int) -> int:
    """The most that fit the first sample."""
    kind, length = cell
    budget, least = length - KINDS[kind].answer, KINDS[kind].least

    def tokens(size: int) -> int:
        return len(_prompt(subject, cell, size, haystack, seed, 0).ids)

    return most_units(tokens, budget, least, f"lengths ({length}): {kind}")


def _result(cells: list[tuple[str, int]], scores: np.ndarray, texts: list[dict[str, Any]]) -> Result:
    n = scores.shape[1]
    figures, found = {}, []
    for (kind, length), of in zip(cells, scores, strict=True):
        error = float(of.std(ddof=1) / n**0.5) if n > 1 else None
        figures[f"{kind} at {length}"] = Figure(float(of.mean()), n, error)
        found.append({"kind": kind, "length": length, "score": float(of.mean()), "standard_error": error, "n": n})
    for length in sorted({length for _, length in cells}):
        of = scores[[at == length for _, at in cells]]
        error = float(np.sqrt((of.var(1, ddof=1) / n).sum()) / len(of)) if n > 1 else None
        figures[f"mean at {length}"] = Figure(float(of.mean()), of.size, error)
    return Result(
        figures, {"cells": found, "texts": texts}, f"{n} prompts of each kind and length; references found, as RULER scores"
    )


def draw_ruler(figure: Any, results: dict[str, dict[str, Any]]) -> None:
    """A heat map of each model over length and kind. results: by model."""
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for axes, (name, details) in zip(panels, results.items(), strict=True):
        drawn = heat_map(axes, [(cell["kind"], cell["length"], cell["score"]) for cell in details["cells"]], str)
        axes.set_title(name)
    figure.colorbar(drawn, ax=panels, shrink=0.8)
