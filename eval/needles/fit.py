"""Prompts as long as they may be: the most units of haystack with which a prompt and its answer fit a number of tokens."""

from collections.abc import Callable
from typing import NamedTuple

from llm.errors import ConfigError


class Prompt(NamedTuple):
    """ids, and the answers that are right."""

    ids: list[int]
    references: list[str]


def most_units(tokens_with: Callable[[int], int], budget: int, least: int, what: str) -> int:
    """The largest size with `tokens_with(size) <= budget`, by doubling and bisection. Raises ConfigError: not even `least` fits."""
    needed = tokens_with(least)
    if needed > budget:
        raise ConfigError(f"{what} takes {needed} tokens at least beside its answer, and {budget} are left; use longer lengths")
    low, high = least, 2 * least
    while tokens_with(high) <= budget:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if tokens_with(middle) <= budget else (low, middle)
    return low


def fitted(make: Callable[[int], Prompt], units: int, budget: int, least: int = 1) -> Prompt:
    """`make(units)`, with fewer, but `least`, units while that is longer than `budget`: samples of a size differ by some tokens."""
    prompt = make(units)
    while len(prompt.ids) > budget and units > least:
        units = max(least, min(units - 1, units * budget // len(prompt.ids)))
        prompt = make(units)
    return prompt
