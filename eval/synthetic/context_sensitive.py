"""Seven context-sensitive tasks (Delétang et al., arXiv:2207.02098, sec. 4): what a tape can do.

Numbers are above 0; in sums and products they are written from their lowest bit on, and the answer ends in 2. `odds_first` is
as in the paper, s1 s3 ... s2 s4 ...; the published code puts the even ones first.
"""

import math
import random

import torch
from torch import Generator

from eval.synthetic.regular import bits
from eval.synthetic.task import Batch, seed_of, then_asked
from llm.errors import ConfigError
from llm.ops.cross_entropy import IGNORED

ASK, BETWEEN, END = 3, 2, 2
HOLE = 2
SYMBOLS = 5


def duplicate_string(batch: int, length: int, generator: Generator) -> Batch:
    x = bits(batch, length, generator)
    return then_asked(x, torch.cat([x, x], 1), ASK)


def missing_duplicate_string(batch: int, length: int, generator: Generator) -> Batch:
    """A string twice, with one symbol of the two copies missing; that symbol. Raises ConfigError: an odd length."""
    if length % 2:
        raise ConfigError(f"length ({length}) of missing_duplicate_string must be even, two copies; use {length + 1}")
    x = bits(batch, length // 2, generator).repeat(1, 2)
    hole = torch.randint(0, length, (batch, 1), generator=generator)
    return then_asked(x.scatter(1, hole, HOLE), x.gather(1, hole), ASK)


def odds_first(batch: int, length: int, generator: Generator) -> Batch:
    x = bits(batch, length, generator)
    return then_asked(x, torch.cat([x[:, ::2], x[:, 1::2]], 1), ASK)


def bucket_sort(batch: int, length: int, generator: Generator) -> Batch:
    x = torch.randint(0, SYMBOLS, (batch, length), generator=generator)
    return then_asked(x, x.sort(1).values, SYMBOLS)


def compute_sqrt(batch: int, length: int, generator: Generator) -> Batch:
    """A number from its highest bit on; its root, rounded down, in half the bits."""
    rng, half = random.Random(seed_of(generator)), -(-length // 2)
    numbers = [rng.randint(1, 2**length - 1) for _ in range(batch)]
    given, roots = (
        [_bits(n, size)[::-1] for n in of] for of, size in ((numbers, length), ([math.isqrt(n) for n in numbers], half))
    )
    return then_asked(torch.tensor(given), torch.tensor(roots), ASK)


def binary_addition(batch: int, length: int, generator: Generator) -> Batch:
    """Raises ConfigError: a length below 3."""
    return _of_two(batch, length, generator, product=False)


def binary_multiplication(batch: int, length: int, generator: Generator) -> Batch:
    """Raises ConfigError: a length below 3."""
    return _of_two(batch, length, generator, product=True)


def _of_two(batch: int, length: int, generator: Generator, product: bool) -> Batch:
    if length < 3:
        raise ConfigError(f"length ({length}) of two numbers must be at least 3, as in 1+1")
    rng, rows, answers = random.Random(seed_of(generator)), [], []
    most = length - 1 + (not product)
    for _ in range(batch):
        first = rng.randint(1, length - 2)
        second = length - 1 - first
        a, b = (rng.randint(1, 2**size - 1) for size in (first, second))
        found = a * b if product else a + b
        answer = [*_bits(found, found.bit_length()), END]
        rows.append([*_bits(a, first), BETWEEN, *_bits(b, second)])
        answers.append(answer + [IGNORED] * (most + 1 - len(answer)))
    return then_asked(torch.tensor(rows), torch.tensor(answers), ASK)


def _bits(number: int, size: int) -> list[int]:
    """From the lowest on."""
    return [number >> i & 1 for i in range(size)]
