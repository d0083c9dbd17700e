"""Word problems of groups: the product of all elements so far (Merrill et al., arXiv:2404.08819, sec. 3 and 5).

Products in S5, or A5 alone, are complete for NC1: no model of a fixed depth whose state moves linearly and by itself keeps track
of them at all lengths.
"""

from functools import cache, partial
from itertools import permutations

import torch
from torch import Generator, Tensor

from eval.synthetic.task import Batch, Sample

LETTERS = 5


def word_problem(batch: int, length: int, generator: Generator, even: bool) -> Batch:
    """Random elements, by their number; at each, the number of x_t ... x_1, where the first acts first. even: in A5, else in S5."""
    table = products(even)
    elements = torch.randint(0, len(table), (batch, length), generator=generator)
    labels = torch.empty_like(elements)
    labels[:, 0] = elements[:, 0]
    for t in range(1, length):
        labels[:, t] = table[elements[:, t], labels[:, t - 1]]
    return elements, labels


@cache
def group(even: bool) -> list[tuple[int, ...]]:
    """Permutations of 5 letters in lexicographic order; the first is the identity."""
    return [p for p in permutations(range(LETTERS)) if not even or _is_even(p)]


def _is_even(p: tuple[int, ...]) -> bool:
    return sum(p[i] > p[j] for i in range(LETTERS) for j in range(i + 1, LETTERS)) % 2 == 0


@cache
def products(even: bool) -> Tensor:
    """`[n, n]`: at (a, b) the number of a after b."""
    elements = group(even)
    number = {p: i for i, p in enumerate(elements)}
    return torch.tensor([[number[tuple(a[i] for i in b)] for b in elements] for a in elements])


s5: Sample = partial(word_problem, even=False)
a5: Sample = partial(word_problem, even=True)
