"""How documents are cut for a model to read, by rule. Each token of a document's text is scored exactly once, whatever the rule.

stream   the whole document, its state carried from batch to batch: everything before a token is its context.
window   windows of W tokens that move on by a stride S (W unless given), each read afresh and scored where the one before it ended:
         a token has at least W - S tokens of context, and one at least.
harness  lm-evaluation-harness' rolling rule: windows with S = W, of which a document's last one is moved back until it is full.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Rule = Literal["stream", "window", "harness"]


@dataclass(frozen=True)
class Piece:
    """Tokens [first, stop) of a document, read together; those from `scored` on are scored."""

    document: int
    first: int
    scored: int
    stop: int

    @property
    def inputs(self) -> int:
        """Tokens to read: the last one is only a label."""
        return self.stop - self.first - 1


def cut(lengths: np.ndarray, rule: Rule, window: int, stride: int) -> list[Piece]:
    """The pieces of documents with `lengths` tokens, their opening token included; none of a document without text."""
    if rule == "stream":
        return [Piece(k, 0, 1, int(n)) for k, n in enumerate(lengths) if n > 1]
    return [piece for k, n in enumerate(lengths) for piece in _windows(k, int(n), window, stride, fill=rule == "harness")]


def _windows(document: int, length: int, window: int, stride: int, fill: bool) -> list[Piece]:
    found, first, scored = [], 0, 1
    while scored < length:
        stop = min(first + window + 1, length)
        begin = max(0, stop - window - 1) if fill else first
        found.append(Piece(document, begin, scored, stop))
        first, scored = first + stride, stop
    return found


def offsets(lengths: np.ndarray) -> np.ndarray:
    """Where each document's scored tokens begin when all of them are laid end to end, and where the last one's end; int64."""
    return np.concatenate([[0], np.maximum(lengths - 1, 0).cumsum()]).astype(np.int64)


def contexts(pieces: list[Piece], lengths: np.ndarray) -> np.ndarray:
    """Per scored token, in documents' order, the tokens that were read before it; int32."""
    begins = offsets(lengths)
    found = np.zeros(begins[-1], dtype=np.int32)
    for piece in pieces:
        begin = begins[piece.document] - 1
        found[begin + piece.scored : begin + piece.stop] = np.arange(piece.scored, piece.stop) - piece.first
    return found


def positions(lengths: np.ndarray) -> np.ndarray:
    """Per scored token, its place in its document, the first being 1; int32."""
    return np.concatenate([np.zeros(0, np.int32), *(np.arange(1, n, dtype=np.int32) for n in lengths)])
