"""Pieces of documents in lanes: batched, with the state carried inside a piece and nowhere else.

A lane is a queue of pieces laid end to end; a batch is the next tokens of every lane. Where a piece starts, the model is told so
and its state begins afresh: nothing of a neighbour in the lane reaches it, so neither the number of lanes nor the size of a batch
changes a figure. Models whose rows cannot hold several documents get one piece per lane.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from eval.models.language_model import LanguageModel, ModelState
from eval.windows import Piece
from llm.ops.cross_entropy import IGNORED, cross_entropy_per_token

# pieces are put together until their lanes are as long as this, or as the longest of them
LANE_TOKENS = 4096


@dataclass(frozen=True)
class Lanes:
    """Flat lanes, longest first. Per token: input, label (the next token, or IGNORED), start of a piece, place of the label among
    all scored tokens.
    """

    inputs: list[np.ndarray]
    labels: list[np.ndarray]
    starts: list[np.ndarray]
    places: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.inputs)

    def batches(self, tokens: int) -> int:
        """Batches of at most `tokens` per lane."""
        return -(-len(self.inputs[0]) // tokens)


def grouped(pieces: list[Piece], lanes: int, packs: bool) -> list[list[list[Piece]]]:
    """Groups of at most `lanes` queues: what one rank scores at a time. They depend on the pieces and lanes alone.

    The longest pieces come first, each in the shortest queue so far.
    """
    groups: list[list[list[Piece]]] = []
    room, filled = 0, [0]
    for piece in sorted(pieces, key=lambda piece: -piece.inputs):
        if not groups or (packs and room < piece.inputs) or (not packs and filled[-1]):
            groups.append([[] for _ in range(lanes)])
            room, filled = lanes * max(LANE_TOKENS, piece.inputs), [0] * lanes
        lane = filled.index(min(filled))
        groups[-1][lane].append(piece)
        filled[lane] += piece.inputs
        room -= piece.inputs
    return [[queue for queue in group if queue] for group in groups]


def lay(queues: list[list[Piece]], documents: list[np.ndarray], begins: np.ndarray) -> Lanes:
    """The tokens of queues. begins: where each document's scored tokens begin among all of them."""
    ordered = sorted(queues, key=lambda queue: -sum(piece.inputs for piece in queue))
    inputs, labels, starts, places = [], [], [], []
    for queue in ordered:
        inputs.append(np.concatenate([documents[p.document][p.first : p.stop - 1] for p in queue]))
        labels.append(np.concatenate([_labels(p, documents[p.document]) for p in queue]))
        starts.append(np.concatenate([np.arange(p.inputs) == 0 for p in queue]))
        places.append(np.concatenate([begins[p.document] + np.arange(p.first, p.stop - 1) for p in queue]))
    return Lanes(inputs, labels, starts, places)


def _labels(piece: Piece, document: np.ndarray) -> np.ndarray:
    labels = document[piece.first + 1 : piece.stop].astype(np.int64)
    labels[: piece.scored - piece.first - 1] = IGNORED
    return labels


class Scored(NamedTuple):
    """Of tokens: their places among all that are scored, their nats in float64, and whether each was the most likely one."""

    places: np.ndarray
    nats: np.ndarray
    greedy: np.ndarray


def token_scores(model: LanguageModel, lanes: Lanes, tokens: int) -> Iterator[Scored]:
    """The tokens that are scored, batch by batch.

    Args:
        tokens: of a lane per batch; it bounds memory and changes no figure.
    """
    state: ModelState = None
    for first in range(0, len(lanes.inputs[0]), tokens):
        # lanes are sorted: those that still have tokens are the first ones
        rows = sum(len(lane) > first for lane in lanes.inputs) if model.packs else len(lanes)
        part = slice(first, first + tokens)
        inputs, labels = (torch.from_numpy(_rows(x, rows, part, fill)) for x, fill in ((lanes.inputs, 0), (lanes.labels, IGNORED)))
        starts = torch.from_numpy(_rows(lanes.starts, rows, part, False)) if model.packs else None
        state = None if state is None else model.narrow(state, rows)
        logits, state = model.logits(inputs, state, starts)
        labels = labels.to(logits.device)
        nats_BT = cross_entropy_per_token(logits, labels).double()
        scored = (labels != IGNORED).cpu().numpy()
        places = _rows(lanes.places, rows, part, 0)
        yield Scored(*(x[scored] for x in (places, nats_BT.cpu().numpy(), (logits.argmax(-1) == labels).cpu().numpy())))


def _rows(lanes: list[np.ndarray], rows: int, part: slice, fill: int | bool) -> np.ndarray:
    """`[rows, T]` of the lanes' `part`, T the longest of them, filled up on the right."""
    cut = [lane[part] for lane in lanes[:rows]]
    out = np.full((rows, max(map(len, cut))), fill, dtype=bool if isinstance(fill, bool) else np.int64)
    for row, values in zip(out, cut, strict=True):
        row[: len(values)] = values
    return out
