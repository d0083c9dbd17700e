"""The decoder: embedding -> braided blocks -> norm -> head, with state in and state out."""

from dataclasses import dataclass, field
from typing import NamedTuple, cast

import torch
from omegaconf import MISSING
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from llm.block import Block, LayerConfig
from llm.docs import Docs
from llm.errors import ConfigError, did_you_mean
from llm.init import initialise
from llm.layers import LAYERS
from llm.mixers import MIXERS
from llm.ops.cross_entropy import cross_entropy
from llm.ops.norm import RMSNorm
from llm.parallel import Ranks
from llm.sequence import POSITION
from llm.state import State, StateSpec, place, select


@dataclass(frozen=True)
class ModelConfig:
    """width: channels of the residual stream. depth: layers. layers: by name. pattern: names, repeated until depth is reached.

    logit_cap: c, where logits are softly capped to c tanh(logit / c), as in Gemma 2 and xLSTM 7B; null is without.
    mup_base_width: the width at which learning rates were tuned; they then fit this width (Yang et al., arXiv:2203.03466, table 8:
    logits and the rates of hidden matrices shrink by base / width; initial values are muP's anyway). Heads should grow with the
    width at the same size. null: no scaling.
    """

    width: int = MISSING
    depth: int = MISSING
    vocab_size: int = MISSING
    layers: dict[str, LayerConfig] = field(default_factory=dict)
    pattern: list[str] = field(default_factory=list)
    tie_embeddings: bool = True
    norm_eps: float = 1e-6
    logit_cap: float | None = None
    mup_base_width: int | None = None

    @property
    def width_ratio(self) -> float:
        """muP's base width / width: of the logits, and of the rate of hidden matrices; 1 without muP."""
        return (self.mup_base_width or self.width) / self.width

    def layer_names(self) -> list[str]:
        """The name of each of the `depth` layers."""
        return [self.pattern[i % len(self.pattern)] for i in range(self.depth)]

    def check(self, where: str = "model") -> None:
        """Raises ConfigError."""
        for name in ("width", "depth", "vocab_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{where}.{name} ({getattr(self, name)}) must be at least 1")
        if self.logit_cap is not None and self.logit_cap <= 0:
            raise ConfigError(
                f"{where}.logit_cap ({self.logit_cap}) bounds the logits and must be above 0; use 30, or null for none"
            )
        if self.mup_base_width is not None and self.mup_base_width < 1:
            raise ConfigError(f"{where}.mup_base_width ({self.mup_base_width}) must be at least 1, or null for no scaling")
        if not self.pattern:
            raise ConfigError(f"{where}.pattern is empty; list the names of {where}.layers in the order they repeat")
        for name in self.pattern:
            if name not in self.layers:
                raise ConfigError(f"{where}.pattern names an unknown layer {name!r}; {did_you_mean(name, self.layers)}")
        unused = sorted(set(self.layers) - set(self.layer_names()))
        if unused:
            raise ConfigError(
                f"{where}.layers.{unused[0]} is in none of the {self.depth} layers; add it to {where}.pattern or remove it"
            )
        for name, layer in self.layers.items():
            layer.mixer.check(f"{where}.layers.{name}.mixer", self.width)
            layer.ffn.check(f"{where}.layers.{name}.ffn", self.width)


def model_kinds(where: str = "model") -> dict[str, dict[str, type]]:
    """The tables of kinds that `llm.config` needs to read a `ModelConfig` at the path `where`."""
    prefix = f"{where}." if where else ""
    return {
        f"{prefix}layers.*.mixer": {kind: config for kind, (config, _) in MIXERS.items()},
        f"{prefix}layers.*.ffn": {kind: config for kind, (config, _) in LAYERS.items()},
    }


class Output(NamedTuple):
    """logits `[B, T, Z]`, or the summed loss in nats of the labels that are not ignored; and the state after the last token.

    z_sum: beside a loss, the sum of log^2 Z over the same labels, without a gradient.
    """

    logits: Tensor | None
    loss_sum: Tensor | None
    state: State
    z_sum: Tensor | None = None


class Decoder(nn.Module):
    """A language model. Built on any device, also meta; values come from `llm.init.initialise`."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        config.check()
        self.config = config
        self.checkpoint_activations = False
        self.embedding = nn.Parameter(torch.empty(config.vocab_size, config.width))
        self.blocks = nn.ModuleList(Block(config.layers[name], config.width, config.norm_eps) for name in config.layer_names())
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.head = None if config.tie_embeddings else nn.Parameter(torch.empty(config.vocab_size, config.width))

    @classmethod
    def create(cls, config: ModelConfig, seed: int, device: torch.device | str = "cpu") -> "Decoder":
        """A decoder with its initial values."""
        with torch.device("meta"):
            model = cls(config)
        model.to_empty(device=device)
        initialise(model, seed, config.depth)
        return model

    def forward(
        self,
        tokens_BT: Tensor,
        state: State | None = None,
        docs: Docs | None = None,
        labels_BT: Tensor | None = None,
        last_only: bool = False,
        ranks: Ranks | None = None,
        z_loss: float = 0.0,
    ) -> Output:
        """Logits, or with labels the summed loss (labels are already shifted; -100 is not scored), whose gradient is that of the
        loss and of `z_loss` times log^2 Z.

        last_only: logits of the last token alone, `[B, 1, Z]`. ranks: those that the sequence is split over; tokens, labels and
        what comes out are this rank's, state and docs the whole sequence's.
        """
        x_BTD, state = self.hidden(F.embedding(tokens_BT, self.embedding), state, docs, ranks)
        if labels_BT is not None:
            flat = x_BTD.flatten(0, 1), self.unembedding.to(x_BTD.dtype), labels_BT.flatten()
            loss_sum, z_sum = cross_entropy(*flat, z_loss, self.config.logit_cap)
            return Output(None, loss_sum, state, z_sum)
        return Output(self.logits(x_BTD[:, -1:] if last_only else x_BTD), None, state)

    @property
    def unembedding(self) -> Tensor:
        """`[Z, D]`: the head, or the embedding where it is tied."""
        return self.embedding if self.head is None else self.head

    def logits(self, x_BTD: Tensor) -> Tensor:
        """`[B, T, Z]`, from what `hidden` returns."""
        logits, cap = F.linear(x_BTD, self.unembedding), self.config.logit_cap
        return logits if cap is None else cap * (logits / cap).tanh()

    def hidden(
        self,
        x_BTD: Tensor,
        state: State | None = None,
        docs: Docs | None = None,
        ranks: Ranks | None = None,
        kept: list[Tensor] | None = None,
    ) -> tuple[Tensor, State]:
        """From embedded tokens to what the head reads, and the state after the last token. kept: receives each layer's input."""
        new_state: State = {}
        for i, block in enumerate(self.blocks):
            if kept is not None:
                kept.append(x_BTD)
            old = None if state is None else {"position": state["position"], **select(state, f"layers.{i}")}
            if self.checkpoint_activations and torch.is_grad_enabled():
                x_BTD, new = checkpoint(block, x_BTD, old, docs, ranks, use_reentrant=False)
            else:
                x_BTD, new = block(x_BTD, old, docs, ranks)
            # One position serves all layers.
            new_state["position"] = new.pop("position")
            new_state |= place(new, f"layers.{i}")
        x_BTD = self.norm(x_BTD)
        return (x_BTD if self.config.width_ratio == 1 else x_BTD * self.config.width_ratio), new_state

    def step(self, token_B: Tensor, state: State | None, starts_B: Tensor | None = None) -> tuple[Tensor, State]:
        """One token: (logits `[B, Z]`, new state)."""
        docs = None if starts_B is None else Docs(starts_B[:, None])
        out = self(token_B[:, None], state, docs)
        return out.logits[:, 0], out.state

    def state_spec(self) -> dict[str, StateSpec]:
        specs = {"position": POSITION}
        for i, block in enumerate(self.blocks):
            mixer = cast(Block, block).mixer
            specs |= {f"layers.{i}.{key}": spec for key, spec in mixer.state_spec().items()}
        return specs

    def init_state(self, batch: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> State:
        """The state behind which no token lies."""
        return {name: spec.zeros(batch, device, dtype) for name, spec in self.state_spec().items()}
