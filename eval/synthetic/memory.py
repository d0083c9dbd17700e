"""Tasks that ask for what was read: associative recall, induction, selective copying, and bigrams with triggers."""

from functools import cache, partial

import numpy as np
import torch
from torch import Generator, Tensor

from eval.synthetic.task import Batch, Sample, then_asked
from llm.errors import ConfigError
from llm.ops.cross_entropy import IGNORED

SPECIAL = 0
NOISE, COPY_ASK, FIRST_COPIED = 0, 1, 2
TRIGGERS = 3


def recall(batch: int, pairs: int, generator: Generator, length: int = 64, vocab: int = 64) -> Batch:
    """`pairs` keys, each with its value behind it, then every key once more, to be answered.

    Zoology's MQAR (arXiv:2312.04927, app. A.1 and its code): keys are distinct tokens of 1 .. V/2 - 1, values distinct tokens of
    the other half; the second half's keys stand at even positions, near ones more often than far ones (density of the gap
    ~ gap^-0.9); everything between is random tokens, which may repeat a key: the labels alone say what is asked. Answers are not
    shown. Raises ConfigError where the keys do not fit.
    """
    half, context = vocab // 2, 2 * pairs
    slots = (length - context) // 2
    most = min(half - 1, slots)
    if pairs > most:
        raise ConfigError(f"pairs ({pairs}) must be at most {most} with length {length} and vocab {vocab}; use fewer")
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


def induction(batch: int, length: int, generator: Generator, vocab: int = 16) -> Batch:
    """Random tokens with a special one somewhere among them and at the end; what followed the first (Mamba, arXiv:2312.00752,
    sec. 4.1.2, after Olsson et al., arXiv:2209.11895). Raises ConfigError: a length below 3."""
    if length < 3:
        raise ConfigError(f"length ({length}) of induction must be at least 3")
    tokens = torch.randint(1, vocab, (batch, length), generator=generator)
    place = torch.randint(0, length - 2, (batch, 1), generator=generator)
    tokens.scatter_(1, place, SPECIAL)
    tokens[:, -1] = SPECIAL
    labels = torch.full_like(tokens, IGNORED)
    labels[:, -1:] = tokens.gather(1, place + 1)
    return tokens, labels


def selective_copy(batch: int, length: int, generator: Generator, copied: int = 8, symbols: int = 8) -> Batch:
    """`length` tokens of noise with `copied` symbols at random places among them; the symbols in their order (Mamba,
    arXiv:2312.00752, sec. 4.1.1). Raises ConfigError: they do not fit."""
    if length < copied:
        raise ConfigError(f"length ({length}) of selective_copy must be at least {copied}, the symbols to be copied")
    places = torch.rand(batch, length, generator=generator).argsort(1)[:, :copied].sort(1).values
    values = torch.randint(FIRST_COPIED, FIRST_COPIED + symbols, (batch, copied), generator=generator)
    given = torch.full((batch, length), NOISE).scatter(1, places, values)
    return then_asked(given, values, COPY_ASK)


def bigrams(batch: int, length: int, generator: Generator, vocab: int = 32, again_only: bool = False) -> Batch:
    """Text of one fixed bigram model, save that after each of three triggers comes a token that the sequence has drawn for it; the
    next token (Bietti et al., arXiv:2306.00802, sec. 3). again_only: asks behind triggers alone that came up before."""
    cumulative = torch.from_numpy(bigram_model(vocab)).cumsum(1)
    follows = torch.randint(TRIGGERS, vocab, (batch, TRIGGERS), generator=generator)
    draws = torch.rand(length, batch, dtype=torch.float64, generator=generator)
    read = torch.empty(batch, length + 1, dtype=torch.long)
    read[:, 0] = torch.randint(0, vocab, (batch,), generator=generator)
    for t in range(length):
        now = read[:, t]
        drawn = torch.searchsorted(cumulative[now], draws[t, :, None])[:, 0].clamp(max=vocab - 1)
        read[:, t + 1] = torch.where(now < TRIGGERS, follows.gather(1, now.clamp(max=TRIGGERS - 1)[:, None])[:, 0], drawn)
    tokens, labels = read[:, :-1], read[:, 1:]
    return tokens, labels.masked_fill(~_again(tokens), IGNORED) if again_only else labels


def _again(tokens_BT: Tensor) -> Tensor:
    """Triggers that are not the row's first of their kind."""
    counts = torch.stack([(tokens_BT == trigger).cumsum(1) for trigger in range(TRIGGERS)])
    here = torch.stack([tokens_BT == trigger for trigger in range(TRIGGERS)])
    return (here & (counts > 1)).any(0)


@cache
def bigram_model(vocab: int) -> np.ndarray:
    """`[vocab, vocab]`: p(next | now), the same in every run: a few likely tokens each, and a trigger in one of eight places."""
    rows = np.random.default_rng(0).dirichlet(np.full(vocab - TRIGGERS, 0.2), vocab)
    share = TRIGGERS / 24
    return np.hstack([np.full((vocab, TRIGGERS), share / TRIGGERS), (1 - share) * rows])


induced: Sample = partial(bigrams, again_only=True)
