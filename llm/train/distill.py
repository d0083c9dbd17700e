"""Distillation: a student learns from a teacher, which runs beside it on the same documents and is not trained.

`match: mixers`  each replaced mixer, fed what the teacher's layer is fed, learns the teacher's output: hidden-state alignment of
                 MOHAWK (arXiv:2408.10189 sec. 4.2), here the squared error over the output's square, per token. All else is frozen.
`match: logits`  the whole student learns the teacher's next tokens, and the text's (sec. 4.3).

The teacher is whole on every rank, in the dtype that the student computes in.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from llm.block import Block
from llm.docs import Docs
from llm.errors import ConfigError
from llm.model import Decoder, ModelConfig
from llm.ops.cross_entropy import IGNORED
from llm.ops.distillation import Head, distillation
from llm.parallel import Ranks
from llm.state import accumulator


@dataclass(frozen=True)
class DistillConfig:
    """teacher: a run, a checkpoint, or a folder that braid-import wrote; null: nobody teaches.

    temperature: of both distributions. weight: of the teacher's next tokens in the loss; the text's have 1 - weight.
    """

    teacher: str | None = None
    match: Literal["mixers", "logits"] = "logits"
    temperature: float = 1.0
    weight: float = 0.5

    def check(self, where: str) -> None:
        """Raises ConfigError."""
        if not 0 < self.temperature < math.inf:
            raise ConfigError(f"{where}.temperature ({self.temperature}) must be finite and positive; 1 leaves logits as they are")
        if not 0 < self.weight <= 1:
            raise ConfigError(f"{where}.weight ({self.weight}) must be above 0 and at most 1; use 0.5 for both")
        for field in fields(self):
            value = getattr(self, field.name)
            inert = self.teacher is None or (self.match == "mixers" and field.name in ("temperature", "weight"))
            if inert and value != field.default:
                needs = f"{where}.teacher" if self.teacher is None else f"{where}.match=logits"
                raise ConfigError(f"{where}.{field.name} ({value}) has no effect without {needs}; set it, or remove this")


def replaced_layers(student: ModelConfig, teacher: ModelConfig) -> list[int]:
    """The layers whose mixers the two have differently."""
    pairs = zip(student.layer_names(), teacher.layer_names(), strict=True)
    return [i for i, (a, b) in enumerate(pairs) if student.layers[a].mixer != teacher.layers[b].mixer]


class Distillation:
    """The loss of a micro-batch in place of the decoder's own. Not a module, so that the engine leaves the teacher alone."""

    def __init__(self, config: DistillConfig, teacher: Decoder, student: ModelConfig):
        self.config, self.teacher = config, teacher.requires_grad_(False).eval()
        self.layers = replaced_layers(student, teacher.config) if config.match == "mixers" else []

    def frozen(self, name: str) -> bool:
        """Whether a parameter of the student stays as it is."""
        trained = tuple(f"blocks.{i}.{part}." for i in self.layers for part in ("mixer", "mixer_norm"))
        return self.config.match == "mixers" and not name.startswith(trained)

    def loss(self, student: Decoder, tokens_BT: Tensor, labels_BT: Tensor, docs: Docs | None, ranks: Ranks | None) -> Tensor:
        """Summed over the labels that are scored: of this rank's tokens, where ranks share sequences."""
        measure = self._mixers if self.config.match == "mixers" else self._logits
        return measure(student, tokens_BT, labels_BT, docs, ranks)

    def _mixers(self, student: Decoder, tokens_BT: Tensor, labels_BT: Tensor, docs: Docs | None, ranks: Ranks | None) -> Tensor:
        x_BTD = F.embedding(tokens_BT, self.teacher.embedding)
        scored_BT = labels_BT != IGNORED
        total = torch.zeros((), dtype=accumulator(x_BTD.dtype), device=x_BTD.device)
        for i in range(self.layers[-1] + 1):
            taught, block = self.teacher.blocks[i], student.blocks[i]
            assert isinstance(taught, Block)
            assert isinstance(block, Block)
            with torch.no_grad():
                wanted_BTD, _ = taught.mix(x_BTD, None, docs, ranks)
            if i in self.layers:
                mix: Callable[..., Any] = block.mix
                given = (x_BTD, None, docs, ranks)
                found_BTD, _ = checkpoint(mix, *given, use_reentrant=False) if student.checkpoint_activations else mix(*given)
                total = total + (relative_error(found_BTD, wanted_BTD) * scored_BT).sum() / len(self.layers)
            with torch.no_grad():
                x_BTD = taught.channel(x_BTD + wanted_BTD)
        return total

    def _logits(self, student: Decoder, tokens_BT: Tensor, labels_BT: Tensor, docs: Docs | None, ranks: Ranks | None) -> Tensor:
        with torch.no_grad():
            wanted = self._head(self.teacher, tokens_BT, docs, ranks)
        found = self._head(student, tokens_BT, docs, ranks)
        nats, divergence = distillation(found, wanted, labels_BT.flatten(), self.config.temperature)
        return (1 - self.config.weight) * nats + self.config.weight * divergence

    def _head(self, model: Decoder, tokens_BT: Tensor, docs: Docs | None, ranks: Ranks | None) -> Head:
        x_BTD, _ = model.hidden(F.embedding(tokens_BT, model.embedding), None, docs, ranks)
        return Head(x_BTD.flatten(0, 1), model.unembedding, model.config.logit_cap)


def relative_error(found_BTD: Tensor, wanted_BTD: Tensor) -> Tensor:
    """|found - wanted|^2 / |wanted|^2 of each token: `[B, T]`."""
    exact = accumulator(wanted_BTD.dtype)
    found, wanted = found_BTD.to(exact), wanted_BTD.to(exact)
    return (found - wanted).square().sum(-1) / wanted.square().sum(-1).clamp(min=torch.finfo(exact).tiny)
