"""Four regular languages (Delétang et al., arXiv:2207.02098, sec. 4), each the walk of a finite automaton.

Every position is labelled with the automaton's answer so far, where the paper labels the end of the string alone; what is tested is
the end.
"""

from functools import partial

import torch
from torch import Generator, Tensor

from eval.synthetic.task import Batch, Sample
from llm.errors import ConfigError
from llm.ops.cross_entropy import IGNORED

MODULUS = 5
PLUS, MINUS, TIMES = range(MODULUS, MODULUS + 3)
CYCLE = 5


def bits(batch: int, length: int, generator: Generator) -> Tensor:
    return torch.randint(0, 2, (batch, length), generator=generator)


def modular_sums(batch: int, length: int, generator: Generator, modulus: int = MODULUS) -> Batch:
    """Random numbers below the modulus; the sum of those up to and with this one.

    The word problem of a cyclic group (Merrill et al., arXiv:2404.08819 sec. 3). `parity` is the smallest, modulo 2; the task
    "Parity" of xLSTM (arXiv:2405.04517 sec. 4.1) is the last of its labels.
    """
    x = torch.randint(0, modulus, (batch, length), generator=generator)
    return x, x.cumsum(1) % modulus


parity: Sample = partial(modular_sums, modulus=2)


def even_pairs(batch: int, length: int, generator: Generator) -> Batch:
    """Random bits; whether 01 and 10 came up an odd number of times."""
    x = bits(batch, length, generator)
    changes = torch.zeros_like(x)
    changes[:, 1:] = x[:, 1:] != x[:, :-1]
    return x, changes.cumsum(1) % 2


def cycle_navigation(batch: int, length: int, generator: Generator) -> Batch:
    """Steps 0 (back), 1 (stay) and 2 (on) on a circle of 5 places; where they lead to from 0."""
    steps = torch.randint(0, 3, (batch, length), generator=generator)
    return steps, (steps - 1).cumsum(1) % CYCLE


def modular_arithmetic(batch: int, length: int, generator: Generator) -> Batch:
    """Numbers below 5 with +, - and x between them; at each number the value so far modulo 5, products first.

    Raises ConfigError: an even length ends in an operator.
    """
    if length % 2 == 0:
        raise ConfigError(f"length ({length}) of modular_arithmetic must be odd, to end in a number; use {length - 1}")
    tokens = torch.empty(batch, length, dtype=torch.long)
    tokens[:, ::2] = torch.randint(0, MODULUS, (batch, length // 2 + 1), generator=generator)
    tokens[:, 1::2] = torch.randint(PLUS, TIMES + 1, (batch, length // 2), generator=generator)
    labels = torch.full_like(tokens, IGNORED)
    # of finished terms; of the last one, which a product may still change
    total, term = torch.zeros(batch, dtype=torch.long), tokens[:, 0]
    labels[:, 0] = term
    for t in range(2, length, 2):
        operator, number = tokens[:, t - 1], tokens[:, t]
        times = operator == TIMES
        total = torch.where(times, total, total + term)
        term = torch.where(times, term * number, torch.where(operator == MINUS, -number, number)) % MODULUS
        labels[:, t] = (total + term) % MODULUS
    return tokens, labels
