"""The mixer contract: state in, state out; algebra on tokens, with time crossed only through `seq`."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from llm.docs import Docs
from llm.parallel import Ranks
from llm.sequence import POSITION, Seq
from llm.state import State, StateSpec


class Mixer(nn.Module):
    """A layer that mixes tokens. A new one writes `mix` and `state_spec`; everything about time is inherited.

    `roles` names the role (`llm/init.py`) of each parameter that its name alone does not give away.
    """

    roles: ClassVar[dict[str, str]] = {}
    # what `mix` gets; llm/compile.py puts another in its place
    window_on_time: type[Seq] = Seq

    def mix(self, x_BTD: Tensor, seq: Seq) -> Tensor:
        """The layer's output `[B, T, D]`."""
        raise NotImplementedError

    def state_spec(self) -> dict[str, StateSpec]:
        """What each entry of the state looks like."""
        raise NotImplementedError

    def full_state_spec(self) -> dict[str, StateSpec]:
        """`state_spec` and the position that every mixer keeps: tokens so far in the current document."""
        return {"position": POSITION, **self.state_spec()}

    def init_state(self, batch: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> State:
        """The state behind which no token lies."""
        return {name: spec.zeros(batch, device, dtype) for name, spec in self.full_state_spec().items()}

    def forward(
        self, x_BTD: Tensor, state: State | None = None, docs: Docs | None = None, ranks: Ranks | None = None
    ) -> tuple[Tensor, State]:
        """(y `[B, T, D]`, the state after the last token). No state: the sequence begins here.

        ranks: those that the sequence is split over; x and y are this rank's tokens, state and docs the whole sequence's.
        """
        given = self.init_state(x_BTD.shape[0], x_BTD.device, x_BTD.dtype) if state is None else state
        seq = self.window_on_time(given, state is None, docs, x_BTD.shape[1], ranks)
        y_BTD = self.mix(x_BTD, seq)
        return y_BTD, seq.new_state

    def step(self, x_BD: Tensor, state: State, starts_B: Tensor | None = None) -> tuple[Tensor, State]:
        """One token: (y `[B, D]`, new state). `starts_B` marks the rows in which it starts a document."""
        docs = None if starts_B is None else Docs(starts_B[:, None])
        y_BTD, state = self(x_BD[:, None], state, docs)
        return y_BTD[:, 0], state
