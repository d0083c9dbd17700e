"""Nats of every token of a text, on all ranks: groups of pieces are dealt out, and what each rank found is put together.

Where documents are split (`--split`), ranks read every batch together instead, each its part of the tokens (`llm/split.py`).

Which pieces share a batch does not depend on the ranks, and every token is scored by one of them: the figures are those of one
rank to the bit.
"""

from typing import NamedTuple

import numpy as np
import torch

from eval.lanes import grouped, lay, token_scores
from eval.models.braid import split_model
from eval.subject import Subject
from eval.windows import Piece, offsets
from llm.train.world import World

# logits held at once, in values
LOGITS = 1 << 25


class Scores(NamedTuple):
    """Per token: nats, float64; and whether it was the most likely one."""

    nats: np.ndarray
    greedy: np.ndarray


def score(subject: Subject, documents: list[np.ndarray], pieces: list[Piece], lanes: int, window: int) -> Scores:
    """Of each document's tokens but its first, documents one after another. All ranks call it together.

    Args:
        documents: the tokens that `pieces` are cut from. lanes: rows of a batch at most. window: tokens of a row per batch at most.
    """
    model, world = subject.model, subject.world
    if subject.split and world.size > 1:
        # every rank scores every document, and reads its part of each batch's tokens
        model, world = split_model(model, world), World(0, 1, world.device)
    begins = offsets(np.array([len(document) for document in documents]))
    rows = lanes if model.packs else max(1, min(lanes, LOGITS // (window * model.vocab_size)))
    tokens = max(1, min(window, LOGITS // (rows * model.vocab_size)))
    mine = world.share(grouped(pieces, rows, model.packs))
    nats, greedy = np.zeros(begins[-1]), np.zeros(begins[-1], dtype=np.uint8)
    laid = [lay(group, documents, begins) for group in mine]
    batches = (found for lanes in laid for found in token_scores(model, lanes, tokens))
    calls = sum(lanes.batches(tokens) for lanes in laid)
    with subject.progress("batches", calls) as advance:
        for k in range(calls if subject.pace is None else subject.pace.rounds(calls)):
            if k < calls:
                found = next(batches)
                nats[found.places], greedy[found.places] = found.nats, found.greedy
                advance(1)
            else:
                model.logits(torch.full((1, 1), model.opening))
            if subject.pace is not None:
                subject.pace.check_time()
    together = [world.sum(torch.from_numpy(x).to(world.device)).cpu().numpy() for x in (nats, greedy)]
    return Scores(together[0], together[1].astype(bool))
