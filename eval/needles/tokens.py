"""A needle of token ids: `opening, filler ..., KEY VALUE, ... filler, KEY`, and what comes next is asked. It needs no language.

Keys, values and filler are disjoint sets of ids, chosen once for a vocabulary, so that a model trained on such sequences is tested
on the same roles. With `pairs` above 1 other pairs lie in the filler; their values are among the candidates.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from eval.figures import Result
from eval.needles.grid import GridConfig, over_grid
from eval.needles.questions import Question
from eval.subject import Subject
from llm.errors import ConfigError


@dataclass(frozen=True)
class NeedleTokensConfig(GridConfig):
    """pairs: keys with a value in the haystack, one of which is asked for. keys, values: ids that can be so."""

    pairs: int = 1
    keys: int = 32
    values: int = 32

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises ConfigError."""
        if not 1 <= self.pairs <= min(self.keys, self.candidates):
            raise ConfigError(
                f"pairs ({self.pairs}) must be at least 1 and at most keys ({self.keys}) and candidates ({self.candidates})"
            )
        if self.candidates > self.values:
            raise ConfigError(f"candidates ({self.candidates}) are drawn from values ({self.values}); use fewer, or more values")
        if self.keys + self.values + 2 > vocab_size:
            raise ConfigError(
                f"keys ({self.keys}) and values ({self.values}) leave no filler in a vocabulary of {vocab_size}; use fewer"
            )
        if min(self.lengths) < shortest(self.pairs):
            raise ConfigError(f"lengths ({min(self.lengths)}) must be at least {shortest(self.pairs)} with pairs={self.pairs}")


class Roles(NamedTuple):
    """Ids, disjoint."""

    opening: int
    keys: np.ndarray
    values: np.ndarray
    filler: np.ndarray


def shortest(pairs: int) -> int:
    """Tokens that a sequence needs: opening, pairs on a grid of two, the key and the answer."""
    return 2 * pairs + 4


def roles_of(vocab_size: int, opening: int, keys: int, values: int) -> Roles:
    """The same for every model of the vocabulary."""
    ids = np.random.default_rng(0).permutation(np.setdiff1d(np.arange(vocab_size), [opening]))
    return Roles(opening, *np.split(ids, [keys, keys + values]))


def draw_tokens(rng: np.random.Generator, roles: Roles, length: int, depth: float, pairs: int, candidates: int) -> Question:
    """A prompt of `length - 1` tokens; its answer is the last one. The first key is asked for and lies at `depth`."""
    body = rng.choice(roles.filler, length - 3)
    keys = rng.choice(roles.keys, pairs, replace=False)
    values = rng.choice(roles.values, candidates, replace=False)
    place = round(depth * (len(body) - 2))
    others = np.setdiff1d(np.arange(place % 2, len(body) - 1, 2), [place])
    places = [place, *rng.choice(others, pairs - 1, replace=False)]
    for at, key, value in zip(places, keys, values[:pairs], strict=True):
        body[at : at + 2] = key, value
    prompt = np.concatenate([[roles.opening], body, keys[:1]]).astype(np.int32)
    return Question(prompt, [[int(value)] for value in values])


def needle_tokens(subject: Subject, config: NeedleTokensConfig) -> Result:
    """The grid, by likelihood and greedily. Raises ConfigError."""
    model = subject.model
    config.check(model.positions)
    config.check_vocabulary(model.vocab_size)
    roles = roles_of(model.vocab_size, model.opening, config.keys, config.values)
    return over_grid(subject, config, lambda rng, *at: draw_tokens(rng, roles, *at, config.pairs, config.candidates))
