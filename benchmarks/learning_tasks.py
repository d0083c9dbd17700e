"""Two synthetic tasks that separate sequence mixers: parity asks for a state, associative recall for a memory of what was read."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from llm.ops.cross_entropy import IGNORED

Batch = tuple[Tensor, Tensor]


def parity(batch: int, length: int, generator: Generator) -> Batch:
    """(bits, labels), both `[B, T]`: random bits; at every position the parity of the bits up to and with it.

    Tracking the state of the smallest group, Z2 (Merrill et al., arXiv:2404.08819 sec. 3), with its every state as a label; the
    task "Parity" of xLSTM (arXiv:2405.04517 sec. 4.1) is the last of the labels.
    """
    bits = torch.randint(0, 2, (batch, length), generator=generator)
    return bits, bits.cumsum(1) % 2


def recall(batch: int, pairs: int, generator: Generator, length: int = 64, vocab: int = 64) -> Batch:
    """(tokens, labels), both `[B, T]`: `pairs` keys, each with its value behind it, then every key once more, to be answered.

    Zoology's MQAR (arXiv:2312.04927, app. A.1 and its code): keys are distinct tokens of 1 .. V/2 - 1, values distinct tokens of
    the other half; the second half's keys stand at even positions, near ones more often than far ones (density of the gap
    ~ gap^-0.9); everything between is random tokens, which may repeat a key: the labels alone say what is asked. Answers are not
    shown. Raises ValueError where the keys do not fit.
    """
    half, context = vocab // 2, 2 * pairs
    slots = (length - context) // 2
    most = min(half - 1, slots)
    if pairs > most:
        raise ValueError(f"pairs ({pairs}) must be at most {most} with length {length} and vocab {vocab}; use fewer")
    keys = 1 + torch.rand(batch, half - 1, generator=generator).argsort(1)[:, :pairs]
    values = half + torch.rand(batch, half, generator=generator).argsort(1)[:, :pairs]
    tokens = torch.randint(0, vocab, (batch, length), generator=generator)
    labels = torch.full((batch, length), IGNORED)
    tokens[:, 0:context:2], tokens[:, 1:context:2] = keys, values
    near_first = torch.arange(1.0, slots + 1).pow(-0.9).expand(batch, -1)
    places = context + 2 * torch.multinomial(near_first, pairs, generator=generator)
    tokens.scatter_(1, places, keys)
    labels.scatter_(1, places, values)
    return tokens, labels


@dataclass(frozen=True)
class Task:
    """sample(batch, size, generator). A batch of training has one of the sizes `train`, at random. last_only: what is tested.

    solved: the training loss, in nats per label and over 50 steps, at which a run may end before `steps`.
    """

    size: str
    sample: Callable[[int, int, Generator], Batch]
    train: tuple[int, ...]
    tests: tuple[int, ...]
    last_only: bool
    vocab: int
    width: int
    hidden: int
    batch: int
    steps: int
    solved: float


TASKS = {
    "parity": Task(
        size="length",
        sample=parity,
        train=tuple(range(1, 41)),
        tests=(5, 10, 20, 40, 80, 120, 200),
        last_only=True,
        vocab=2,
        width=32,
        hidden=64,
        batch=64,
        steps=1000,
        solved=1e-3,
    ),
    "recall": Task(
        size="pairs",
        sample=recall,
        train=(2, 4, 8),
        tests=(2, 4, 8, 16),
        last_only=False,
        vocab=64,
        width=64,
        hidden=0,
        batch=32,
        steps=2000,
        solved=3e-3,
    ),
}
