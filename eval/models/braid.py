"""Our own decoder as a `LanguageModel`."""

from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm.cost import model_cost
from llm.data import DOCUMENT_TOKEN, load_tokenizer
from llm.data.tokenizer import vocabulary_size
from llm.docs import Docs
from llm.errors import ConfigError, DataError
from llm.model import Decoder
from llm.parallel import Ranks
from llm.split import SplitDecoder
from llm.state import State, StateSpec
from llm.train.world import World


class BraidModel:
    """A decoder and the tokenizer of its data. window: tokens of a training sequence. Raises DataError: they do not fit."""

    packs = True
    positions = None

    def __init__(self, decoder: Decoder | SplitDecoder, tokenizer: Path, window: int | None = None):
        self.decoder, self.window = decoder, window
        self.vocab_size = decoder.config.vocab_size
        self.tokenizer = load_tokenizer(tokenizer)
        opening, ids = self.tokenizer.token_to_id(DOCUMENT_TOKEN), vocabulary_size(self.tokenizer)
        if opening is None or ids > self.vocab_size:
            raise DataError(
                f"tokenizer {tokenizer} ({ids} ids, {DOCUMENT_TOKEN}: {opening}) does not fit a model of {self.vocab_size} ids; "
                "use the tokenizer.json of the model's own run"
            )
        self.opening: int = opening

    @property
    def device(self) -> torch.device:
        return self.decoder.embedding.device

    @torch.no_grad()
    def logits(
        self, tokens_BT: Tensor, state: State | None = None, starts_BT: Tensor | None = None, last_only: bool = False
    ) -> tuple[Tensor, State]:
        docs = None if starts_BT is None else Docs(starts_BT.to(self.device))
        out = self.decoder(tokens_BT.to(self.device), state, docs, last_only=last_only)
        return out.logits, out.state

    def narrow(self, state: State, rows: int) -> State:
        return trimmed({name: x[:rows] for name, x in state.items()}, self.decoder.state_spec())

    def state_bytes(self, state: State) -> int:
        return sum(x.numel() * x.element_size() for x in state.values())

    def predicted_state_bytes(self, context: int) -> int:
        return model_cost(self.decoder.config, context, self.decoder.embedding.element_size()).state_bytes

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)


def split_model(model: Any, world: World) -> BraidModel:
    """The model as all ranks run it together, long sequences split among them. Raises ConfigError: it is not our decoder."""
    if not isinstance(model, BraidModel):
        raise ConfigError("--split shares a sequence of our own decoder among ranks; leave it out, and each rank takes documents")
    together = copy(model)
    together.decoder = SplitDecoder(model.decoder, Ranks(world.rank, world.size))
    return together


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
