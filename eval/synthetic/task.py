"""A synthetic task: sequences of ids that are drawn, what is asked in them, and how small models are trained on it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from llm.ops.cross_entropy import IGNORED

# (tokens, labels), both `[B, T]`: at each position what is to be answered there, or IGNORED
Batch = tuple[Tensor, Tensor]
# (batch, size, generator) -> Batch
Sample = Callable[[int, int, Generator], Batch]

LENGTHS = tuple(range(1, 41))
LONGER = (5, 10, 20, 40, 80, 120, 200)


@dataclass(frozen=True)
class Task:
    """A batch of training has one of the sizes `train`, at random.

    size: what is counted by it. last_only: what tests ask; else all labels. tested: drawn in tests instead, where they ask for
    less than training does. solved: the training loss, in nats per label and over 50 steps, at which a run may end before `steps`;
    0: never.
    """

    sample: Sample
    vocab: int
    size: str = "length"
    train: tuple[int, ...] = LENGTHS
    tests: tuple[int, ...] = LONGER
    last_only: bool = True
    tested: Sample | None = None
    width: int = 32
    hidden: int = 64
    batch: int = 64
    steps: int = 1000
    solved: float = 1e-3


def then_asked(given_BT: Tensor, answers_BU: Tensor, ask: int) -> Batch:
    """The given tokens, then `ask` at each place of an answer: answers are not shown (arXiv:2207.02098, sec. 4)."""
    places = torch.full_like(answers_BU, ask)
    nothing = torch.full_like(given_BT, IGNORED)
    return torch.cat([given_BT, places], 1), torch.cat([nothing, answers_BU], 1)


def seed_of(generator: Generator) -> int:
    """For what is drawn in plain Python or NumPy."""
    return int(torch.randint(1 << 62, (), generator=generator))
