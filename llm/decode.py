"""One token at a time with shapes that never change: compiled once, and on a GPU replayed as one CUDA graph.

Without it a step is hundreds of small launches, and a growing cache has another shape for every token. Here a cache has free slots
before its first token, which its `valid` hides: each step takes a slot from them, as a window does from its oldest token.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm.compile import raise_limit
from llm.model import Decoder
from llm.state import State

LEAST = 256


def slots_for(tokens: int) -> int:
    """A power of two, so that few sizes are ever compiled."""
    return max(LEAST, 1 << (tokens - 1).bit_length())


def with_slots(state: State, model: Decoder, slots: int) -> State:
    """A copy whose caches have so many slots, empty ones before those of tokens."""
    specs = model.state_spec()

    def placed(name: str, x: Tensor) -> Tensor:
        if not specs[name].grows:
            return x.clone()
        assert x.shape[1] <= slots, f"{x.shape[1]} tokens in {slots} slots"
        return F.pad(x, (0, 0) * (x.ndim - 2) + (slots - x.shape[1], 0))

    return {name: placed(name, x) for name, x in state.items()}


class Steady(nn.Module):
    """A block whose state leaves as large as it came."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, x_BTD: Tensor, state: State, *rest: Any) -> tuple[Tensor, State]:
        y_BTD, new = self.block(x_BTD, state, *rest)
        return y_BTD, {name: x if x.shape == state[name].shape else x[:, 1:] for name, x in new.items()}


class Decoding:
    """`decoder.step` behind a state, for at most `tokens` more; without gradients.

    Each call gives the logits `[B, Z]`, which the next one overwrites on a GPU, of the token after `token_B`.
    """

    def __init__(self, decoder: Decoder, state: State, tokens: int, compiled: bool = True):
        kept = max((x.shape[1] for name, x in state.items() if decoder.state_spec()[name].grows), default=0)
        self.left = tokens
        self.state = with_slots(state, decoder, slots_for(kept + tokens))
        self.token_B = torch.zeros_like(state["position"])
        # the same parameters: the decoder itself goes on as it was
        self.decoder = copy.copy(decoder)
        blocks = nn.ModuleList(Steady(block) for block in decoder.blocks)
        self.decoder._modules = {**decoder._modules, "blocks": blocks}
        if compiled:
            raise_limit()
            for block in blocks:
                # all of it, ops over time too: of a single token they are a few products
                block.compile(fullgraph=True, dynamic=False)
        self.captures = self.token_B.is_cuda
        self.graph: torch.cuda.CUDAGraph | None = None
        self.logits_BZ = torch.empty(0)

    @torch.no_grad()
    def __call__(self, token_B: Tensor) -> Tensor:
        assert self.left, "more tokens than were announced: the cache's first would be lost"
        self.left -= 1
        self.token_B.copy_(token_B)
        if not self.captures:
            return self._advance()
        self.graph = self.graph or self._capture()
        self.graph.replay()
        return self.logits_BZ

    def _advance(self) -> Tensor:
        logits_BZ, new = self.decoder.step(self.token_B, self.state)
        for name, x in new.items():
            self.state[name].copy_(x)
        return logits_BZ

    def _capture(self) -> torch.cuda.CUDAGraph:
        """The first steps, which compile and pick kernels, are outside of the graph; what they did to the state is undone."""
        before = {name: x.clone() for name, x in self.state.items()}
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._advance()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.logits_BZ = self._advance()
        for name, x in before.items():
            self.state[name].copy_(x)
        return graph
