"""Four deterministic context-free tasks (Delétang et al., arXiv:2207.02098, sec. 4): what a stack can do.

Expressions of a length are the paper's: d, -d, (d), (-d) up to 4 tokens, (A op B) above, with the lengths of A and B drawn
uniformly among those that fit.
"""

import random

import torch
from torch import Generator

from eval.synthetic.regular import MINUS, MODULUS, PLUS, TIMES, bits
from eval.synthetic.task import Batch, seed_of, then_asked
from llm.errors import ConfigError
from llm.ops.cross_entropy import IGNORED

# stack_manipulation: symbols are 0 and 1, an answer ends in END
POP, PUSH, STACK_ASK, END = 2, 3, 5, 2
OPEN, CLOSE, UNKNOWN, EQUALS, ASK = range(TIMES + 1, TIMES + 6)
REVERSE_ASK = 2


def reverse_string(batch: int, length: int, generator: Generator) -> Batch:
    x = bits(batch, length, generator)
    return then_asked(x, x.flip(1), REVERSE_ASK)


def stack_manipulation(batch: int, length: int, generator: Generator) -> Batch:
    """Symbols, the last on top, then at least one of pop, push 0, push 1 (2, 3, 4); the stack that is left, from its top, then 2.

    Popping an empty stack does nothing. Nothing is asked after the end. Raises ConfigError: a length below 2.
    """
    if length < 2:
        raise ConfigError(f"length ({length}) of stack_manipulation must be at least 2, a symbol and an action")
    first = torch.randint(1, length, (batch, 1), generator=generator)
    actions = torch.randint(POP, PUSH + 2, (batch, length), generator=generator)
    tokens = torch.where(torch.arange(length) < first, bits(batch, length, generator), actions)
    stack, height = torch.zeros(batch, length + 1, dtype=torch.long), torch.zeros(batch, dtype=torch.long)
    for token in tokens.unbind(1):
        # pops write above the top, where nothing is read
        stack[torch.arange(batch), height] = token % PUSH
        height = torch.where(token == POP, (height - 1).clamp(min=0), height + 1)
    below = height[:, None] - 1 - torch.arange(length + 1)
    answers = stack.gather(1, below.clamp(min=0))
    answers = answers.masked_fill(below == -1, END).masked_fill(below < -1, IGNORED)
    return then_asked(tokens, answers, STACK_ASK)


def modular_arithmetic_brackets(batch: int, length: int, generator: Generator) -> Batch:
    """An expression in brackets with +, - and x; its value modulo 5."""
    rng = random.Random(seed_of(generator))
    drawn = [expression(length, (PLUS, MINUS, TIMES), rng) for _ in range(batch)]
    return then_asked(torch.tensor([tokens for tokens, _ in drawn]), torch.tensor([[value] for _, value in drawn]), ASK)


def solve_equation(batch: int, length: int, generator: Generator) -> Batch:
    """An expression with + and -, one number of which is unknown, = its value modulo 5; the unknown. Raises ConfigError."""
    if length < 3:
        raise ConfigError(f"length ({length}) of solve_equation must be at least 3, as in x=1")
    rng, rows, answers = random.Random(seed_of(generator)), [], []
    for _ in range(batch):
        tokens, value = expression(length - 2, (PLUS, MINUS), rng)
        at = rng.choice([i for i, token in enumerate(tokens) if token < MODULUS])
        answers.append([tokens[at]])
        rows.append([*tokens[:at], UNKNOWN, *tokens[at + 1 :], EQUALS, value])
    return then_asked(torch.tensor(rows), torch.tensor(answers), ASK)


def expression(length: int, operators: tuple[int, ...], rng: random.Random) -> tuple[list[int], int]:
    """(tokens, value modulo 5)."""
    if length <= 4:
        number, negative = rng.randrange(MODULUS), length % 2 == 0
        inside = [MINUS, number] if negative else [number]
        return ([OPEN, *inside, CLOSE] if length > 2 else inside), (-number if negative else number) % MODULUS
    left_length = rng.randrange(1, length - 3)
    left, a = expression(left_length, operators, rng)
    right, b = expression(length - 3 - left_length, operators, rng)
    operator = rng.choice(operators)
    value = a + b if operator == PLUS else a - b if operator == MINUS else a * b
    return [OPEN, *left, operator, *right, CLOSE], value % MODULUS
