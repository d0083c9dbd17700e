"""A decoder that several ranks run together outside of training, long sequences split among them: evaluation, and prompts."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from llm.docs import Docs
from llm.mixers.ops import ops_of
from llm.model import Decoder, Output
from llm.parallel import Ranks, collectives
from llm.state import State


class SplitDecoder:
    """Called as the decoder is, by all ranks together; all get the whole output and state. Without gradients.

    A sequence's largest part that the ranks divide is split; every rank runs the rest, fewer tokens than there are ranks, from the
    state behind it. A sequence of which ranks would hold less than a convolution looks back is not split.
    """

    def __init__(self, decoder: Decoder, ranks: Ranks):
        self.decoder, self.ranks = decoder, replace(ranks, states=True)
        ops = [op for layer in decoder.config.layers.values() for op in ops_of(layer.mixer, decoder.config.width)]
        self.least = max([1, *(op.reach or 0 for op in ops if op.family == "conv")])

    def __getattr__(self, name: str) -> Any:
        return getattr(self.decoder, name)

    @torch.no_grad()
    def __call__(self, tokens_BT: Tensor, state: State | None = None, docs: Docs | None = None, last_only: bool = False) -> Output:
        length = tokens_BT.shape[1]
        each = length // self.ranks.size
        split, first = each * self.ranks.size, self.ranks.rank * each
        if each < self.least:
            return self.decoder(tokens_BT, state, docs, last_only=last_only)
        whole = None if docs is None else docs[:split]
        out = self.decoder(tokens_BT[:, first : first + each], state, whole, last_only=last_only, ranks=self.ranks)
        assert out.logits is not None
        if split == length:
            gathered = collectives.from_last(out.logits, self.ranks) if last_only else collectives.gather(out.logits, self.ranks, 1)
            return Output(gathered, None, out.state)
        rest = self.decoder(tokens_BT[:, split:], out.state, None if docs is None else docs[split:], last_only=last_only)
        if last_only:
            return rest
        assert rest.logits is not None
        return Output(torch.cat([collectives.gather(out.logits, self.ranks, 1), rest.logits], 1), None, rest.state)
