"""Documents in lanes: every token of every document scored once, batched, with the state carried inside a document.

A lane is a queue of documents laid end to end; a batch is the next `window` tokens of every lane. Where a document starts,
`Docs` says so and the state begins afresh: nothing of a neighbour in the lane reaches it, so neither the number of lanes nor the
window changes a figure. Without carrying, a start is marked every `fresh_every` tokens of a document as well.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from llm.docs import Docs
from llm.model import Decoder
from llm.ops.cross_entropy import IGNORED, cross_entropy_per_token
from llm.state import State, StateSpec


@dataclass(frozen=True)
class Lanes:
    """Flat lanes, longest first. Per token: input, label (the next token), start of a document, number of the document."""

    inputs: list[np.ndarray]
    labels: list[np.ndarray]
    starts: list[np.ndarray]
    document: list[np.ndarray]

    def __len__(self) -> int:
        return len(self.inputs)


def lay(documents: list[np.ndarray], lanes: int, fresh_every: int | None = None) -> Lanes:
    """Share the documents out: the longest first, each to the shortest lane so far. A document's last token is only a label."""
    lengths = np.array([len(document) - 1 for document in documents])
    filled = np.zeros(max(1, lanes), dtype=np.int64)
    queues: list[list[int]] = [[] for _ in filled]
    for k in np.argsort(-lengths, kind="stable"):
        if lengths[k]:
            lane = int(filled.argmin())
            queues[lane].append(int(k))
            filled[lane] += lengths[k]
    order = [queues[lane] for lane in np.argsort(-filled, kind="stable") if queues[lane]]
    return Lanes(
        [np.concatenate([documents[k][:-1] for k in queue]) for queue in order],
        [np.concatenate([documents[k][1:] for k in queue]) for queue in order],
        [np.concatenate([_starts(int(lengths[k]), fresh_every) for k in queue]) for queue in order],
        [np.concatenate([np.full(lengths[k], k) for k in queue]) for queue in order],
    )


def document_nats(model: Decoder, lanes: Lanes, documents: int, window: int) -> Iterator[tuple[int, np.ndarray]]:
    """After each batch: (tokens scored in it, nats of each document so far, float64).

    Args:
        window: tokens of a lane per batch; it bounds memory and changes no figure.
    """
    nats = np.zeros(documents)
    device, specs = model.embedding.device, model.state_spec()
    state: State | None = None
    for first in range(0, len(lanes.inputs[0]), window):
        # lanes are sorted: those that still have tokens are the first ones
        rows = sum(len(lane) > first for lane in lanes.inputs)
        part = slice(first, first + window)
        tokens, labels = (torch.from_numpy(_rows(x, rows, part, fill)) for x, fill in ((lanes.inputs, 0), (lanes.labels, IGNORED)))
        starts = torch.from_numpy(_rows(lanes.starts, rows, part, False))
        state = None if state is None else trimmed({name: x[:rows] for name, x in state.items()}, specs)
        with torch.no_grad():
            out = model(tokens.to(device), state, Docs(starts.to(device)))
            loss_BT = cross_entropy_per_token(out.logits, labels.to(device)).double().cpu().numpy()
        state = out.state
        scored = labels.numpy() != IGNORED
        nats += np.bincount(_rows(lanes.document, rows, part, 0)[scored], weights=loss_BT[scored], minlength=documents)
        yield int(scored.sum()), nats


def trimmed(state: State, specs: dict[str, StateSpec]) -> State:
    """The state without the oldest cache slots that no row's document reaches any more.

    A growing cache `X.k, X.v, X.valid` keeps what documents that have ended left in it; over a lane of many documents that adds up.
    """
    kept = dict(state)
    for name in state:
        if name.endswith(".valid") and specs[name].grows:
            used = state[name].any(0).nonzero()
            first = int(used[0]) if len(used) else state[name].shape[1]
            for key in (name, name[:-5] + "k", name[:-5] + "v"):
                kept[key] = state[key][:, first:]
    return kept


def _starts(length: int, fresh_every: int | None) -> np.ndarray:
    starts = np.zeros(length, dtype=bool)
    starts[:: fresh_every or length] = True
    return starts


def _rows(lanes: list[np.ndarray], rows: int, part: slice, fill: int | bool) -> np.ndarray:
    """`[rows, T]` of the lanes' `part`, T the longest of them, filled up on the right."""
    cut = [lane[part] for lane in lanes[:rows]]
    out = np.full((rows, max(map(len, cut))), fill, dtype=bool if isinstance(fill, bool) else np.int64)
    for row, values in zip(out, cut, strict=True):
        row[: len(values)] = values
    return out
