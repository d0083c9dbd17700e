"""What evaluations ask of a language model, whoever trained it."""

from typing import Any, Protocol

import torch
from torch import Tensor

# keys and values, recurrent states, ...: only the model that made it looks inside
ModelState = Any


class LanguageModel(Protocol):
    """Tokens to logits, text to tokens.

    vocab_size: Z. opening: the id that opens every document. packs: whether `starts_BT` may be given, so that documents can follow
    each other in a row. positions: the longest document it can read; None: any. window: tokens of a training sequence, if known.
    """

    vocab_size: int
    opening: int
    packs: bool
    positions: int | None
    window: int | None

    @property
    def device(self) -> torch.device: ...

    def logits(
        self, tokens_BT: Tensor, state: ModelState = None, starts_BT: Tensor | None = None, last_only: bool = False
    ) -> tuple[Tensor, ModelState]:
        """`[B, T, Z]` (with `last_only` `[B, 1, Z]`) and the state after the last token. Called without gradients.

        state: of the tokens before; it is given up and must not be used again. starts_BT: bool, where documents start.
        """
        ...

    def narrow(self, state: ModelState, rows: int) -> ModelState:
        """The state of the first `rows` rows, without what no later token can reach."""
        ...

    def state_bytes(self, state: ModelState) -> int:
        """Bytes that the state's tensors hold."""
        ...

    def predicted_state_bytes(self, context: int) -> int | None:
        """Bytes of one row's state after `context` tokens, from the config alone; None: not known."""
        ...

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without an opening token; special tokens in it are plain text where the tokenizer can do so."""
        ...

    def decode(self, ids: list[int]) -> str: ...


class Recurrent:
    """The same model, read one token at a time from its state: `--mode recurrent`."""

    def __init__(self, model: LanguageModel):
        self._model = model

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def logits(
        self, tokens_BT: Tensor, state: ModelState = None, starts_BT: Tensor | None = None, last_only: bool = False
    ) -> tuple[Tensor, ModelState]:
        found = []
        for t in range(tokens_BT.shape[1]):
            here = slice(t, t + 1)
            logits, state = self._model.logits(tokens_BT[:, here], state, None if starts_BT is None else starts_BT[:, here])
            found = [logits] if last_only else [*found, logits]
        return torch.cat(found, 1), state
