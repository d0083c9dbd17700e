"""A dataset with documents that spoil the steps which read them, and what that must come to, by a stream that never had them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from llm.data import DataConfig, Manifest, TokenStream, documents
from llm.data.manifest import Source
from llm.data.write import DatasetWriter

BATCH, T, DOCUMENTS = 8, 32, 160
# step -> the token of a document that this step of a run from scratch reads, and no other step up to STEPS
TOKENS = {2: 251, 4: 252, 5: 253}
STEPS = 6
# the token of a document's text that its mark replaces
MARKED = 10


def dataset(folder: Path, tokenizer: bytes, packing: str = "concat") -> Manifest:
    """Documents of some 45 tokens; those with the marks of TOKENS are found by writing it twice: marks change no order."""
    plain = _write(folder / f"{packing}-plain", tokenizer, {})
    return _write(folder / packing, tokenizer, {step: _document_of(plain, step, packing) for step in TOKENS})


def _write(folder: Path, tokenizer: bytes, marks: dict[int, int]) -> Manifest:
    writer = DatasetWriter(folder, tokenizer, {"text": Source(1.0, "CC0-1.0")})
    rng = np.random.default_rng(0)
    for k in range(DOCUMENTS):
        tokens = ((np.arange(rng.integers(30, 60)) * 7 + rng.integers(1, 50)) % 200 + 1).tolist()
        for step, document in marks.items():
            if document == k:
                tokens[MARKED] = TOKENS[step]
        writer.add("text", "train", tokens, len(tokens))
    return writer.finish()


def _document_of(manifest: Manifest, step: int, packing: Any) -> int:
    """A document of which this step reads what is to be marked."""
    stream = TokenStream(manifest, "train", DataConfig(sequence_length=T, packing=packing), 0, BATCH)
    spans = [span for place in stream.order.places(np.arange(BATCH) + (step - 1) * BATCH) for span in place.spans]
    begins = np.cumsum([0, *(len(document.tokens) for document in documents(manifest, "train"))])
    return next(k for k, at in enumerate(begins + 1 + MARKED) if any(span.low <= at < span.high for span in spans))


def holders(manifest: Manifest, token: int) -> list[int]:
    """The documents that hold a token, by their numbers in the only shard."""
    return [k for k, document in enumerate(documents(manifest, "train")) if token in document.tokens]


@contextmanager
def effects(factors: dict[int, float]) -> Iterator[None]:
    """The loss of a micro-batch that holds a token is so many times itself."""
    from llm.train.deepspeed_config import LossOnly

    forward = LossOnly.forward

    def spoilt(self: LossOnly, tokens_BT: torch.Tensor, *args: Any, **more: Any) -> Any:
        out = forward(self, tokens_BT, *args, **more)
        for token, factor in factors.items():
            if bool((tokens_BT == token).any()):
                out = (out[0] * factor, *out[1:]) if isinstance(out, tuple) else out * factor
        return out

    with mock.patch.object(LossOnly, "forward", spoilt):
        yield


@contextmanager
def never(low: int, high: int) -> Iterator[None]:
    """A stream that never had the rows [low, high): the oracle, by moving every index. A row whose document went on from there
    starts afresh.
    """
    rows, lanes = TokenStream.rows, TokenStream.lanes

    def moved(indices: np.ndarray) -> np.ndarray:
        return np.where(indices < low, indices, indices + high - low)

    def taken(self: TokenStream, indices: np.ndarray) -> Any:
        found = rows(self, moved(indices))
        found.starts[(indices >= low) & (indices < low + BATCH), 0] = True
        return found

    with (
        mock.patch.object(TokenStream, "rows", taken),
        mock.patch.object(TokenStream, "lanes", lambda self, indices: lanes(self, moved(indices))),
    ):
        yield


@contextmanager
def ending_at(step: int, times: int, end: Callable[[], None]) -> Iterator[None]:
    """`end` is called when the batch of a step is asked for so many times: it is the step that would follow `step` - 1."""
    from llm.train.guard import Guard

    beat, asked = Guard.beat, []

    def beating(self: Guard, now: int, phase: str, *more: Any) -> None:
        if now == step and phase == "reading":
            asked.append(now)
            if len(asked) == times:
                end()
        beat(self, now, phase, *more)

    with mock.patch.object(Guard, "beat", beating):
        yield
