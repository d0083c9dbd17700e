"""Questions with one right answer among candidates, put to a model that need not follow instructions: by likelihood, and greedily.

rank     of the right answer among the candidates by log-probability, 1 being the most likely; ties are broken at random
margin   log p(right answer) - log p(most likely of the others), in nats
exact    whether every token of the right answer was the most likely one, which is what greedy writing would give

Candidates are drawn alike, so a model that found nothing ranks the right one first in 1 of len(candidates).
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from eval.models.language_model import LanguageModel
from eval.prefill import prefill
from eval.subject import Subject


@dataclass(frozen=True)
class Question:
    """prompt: ids. candidates: ids of each, the right answer first."""

    prompt: np.ndarray
    candidates: list[list[int]]


class Answers(NamedTuple):
    """Of each question."""

    rank: np.ndarray
    margin: np.ndarray
    exact: np.ndarray


def ask(subject: Subject, batches: list[range], draw: Callable[[int], Question], window: int, seed: int) -> Answers:
    """The answers to questions number 0, 1, ..., which are drawn as they are read. All ranks call it together.

    Args:
        batches: numbers of the questions to be read together. window: tokens read at once.
    """
    total, world = sum(map(len, batches)), subject.world
    found = np.zeros((3, total))
    mine = world.share(batches)
    with subject.progress("needles", len(mine)) as advance:
        for batch in mine:
            scores, exact = log_probabilities(subject.model, [draw(k) for k in batch], window)
            for k, row, hit in zip(batch, scores, exact, strict=True):
                found[:, k] = rank_of_first(row, np.random.default_rng([seed, k])), row[0] - row[1:].max(), hit
            advance(1)
    rank, margin, exact_match = world.sum(torch.from_numpy(found).to(world.device)).cpu().numpy()
    return Answers(rank.astype(np.int64), margin, exact_match.astype(bool))


def rank_of_first(scores: np.ndarray, rng: np.random.Generator) -> int:
    better, alike = int((scores > scores[0]).sum()), int((scores[1:] == scores[0]).sum())
    return 1 + better + int(rng.integers(alike + 1))


def log_probabilities(model: LanguageModel, questions: list[Question], window: int) -> tuple[np.ndarray, np.ndarray]:
    """`[B, candidates]` in nats, over all tokens of a candidate; and whether each right answer is what greedy writing gives."""
    logits_BZ, state = prefill(model, [question.prompt for question in questions], window)
    columns, exact = [], np.ones(len(questions), dtype=bool)
    for c in range(len(questions[0].candidates)):
        ids = [question.candidates[c] for question in questions]
        logits_BTZ = logits_BZ[:, None]
        if max(map(len, ids)) > 1:
            given = torch.zeros(len(ids), max(map(len, ids)) - 1, dtype=torch.long)
            for row, answer in enumerate(ids):
                given[row, : len(answer) - 1] = torch.tensor(answer[:-1])
            logits_BTZ = torch.cat([logits_BTZ, model.logits(given, copy.deepcopy(state))[0]], 1)
        columns.append([_sum(logits[: len(answer)], answer) for logits, answer in zip(logits_BTZ, ids, strict=True)])
        if c == 0:
            exact = np.array([logits[: len(a)].argmax(-1).tolist() == a for logits, a in zip(logits_BTZ, ids, strict=True)])
    return np.array(columns).T, exact


def _sum(logits_TZ: Tensor, ids: list[int]) -> float:
    return float(logits_TZ.double().log_softmax(-1)[torch.arange(len(ids)), ids].sum())
