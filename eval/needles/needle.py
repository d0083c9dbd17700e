"""One needle in text at a depth: RULER's single needle, answered by likelihood among numbers drawn alike, and greedily."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from eval.figures import Result
from eval.needles.family import Needles
from eval.needles.fit import Prompt, fitted, most_units
from eval.needles.grid import GridConfig, over_grid
from eval.needles.haystack import NOISE, read_haystack
from eval.needles.questions import Question
from eval.needles.words import DRAW, distinct
from eval.subject import Subject
from eval.texts import TextConfig


@dataclass(frozen=True)
class NeedleConfig(GridConfig):
    """text, field, dataset, split: the haystack, as perplexity's text; haystack: `noise` needs none. values: what is asked for."""

    text: str | None = None
    field: str = "text"
    dataset: str | None = None
    split: str = "validation"
    haystack: Literal["text", "noise"] = "text"
    values: Literal["numbers", "words", "uuids"] = "numbers"

    @property
    def texts(self) -> TextConfig:
        return TextConfig(self.text, self.field, self.dataset, self.split)


def needle(subject: Subject, config: NeedleConfig) -> Result:
    """The grid, by likelihood and greedily. All ranks call it together. Raises ConfigError, DataError."""
    config.check(subject.model.positions)
    haystack = NOISE if config.haystack == "noise" else subject.agreed(lambda: read_haystack(subject, config.texts))
    item = Needles("text", "words", config.values).item
    encode = subject.model.encode
    answer = _room(subject, config)

    def prompt(seed: list[int], size: int, depth: float) -> Prompt:
        made = item(np.random.default_rng(seed), size, haystack, depth)
        return Prompt([subject.model.opening, *encode(made.text)], made.references)

    def units(length: int) -> int:
        return most_units(
            lambda size: len(prompt([config.seed], size, 0.5).ids), length - answer, 1, f"lengths ({length}): a needle"
        )

    most = subject.agreed(lambda: {length: units(length) for length in config.lengths})

    def draw(rng: np.random.Generator, length: int, depth: float) -> Question:
        seed = rng.integers(1 << 32, size=4).tolist()
        # the answer does not depend on how much lies around it
        right = prompt(seed, 1, depth).references
        others = distinct(rng, DRAW[config.values], config.candidates - 1, right)
        candidates = [encode(f" {value}") for value in (*right, *others)]
        found = fitted(lambda size: prompt(seed, size, depth), most[length], length - max(map(len, candidates)))
        return Question(np.array(found.ids, dtype=np.int32), candidates)

    return over_grid(subject, config, draw)


def _room(subject: Subject, config: NeedleConfig) -> int:
    """Tokens that an answer takes, about: the longest of a hundred."""
    rng = np.random.default_rng(config.seed)
    return max(len(subject.model.encode(f" {DRAW[config.values](rng)}")) for _ in range(100))
