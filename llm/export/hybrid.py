"""Pretrained attention layers become recurrent ones, which start from its weights, or attention in a window.

    Q -> q, C (scaled by K^-1/2)      K -> k, B      V -> v, x      O -> o      gate from (W_O^T + W_V) / 2

as in The Mamba in the Llama (arXiv:2408.15237 sec. 2 and alg. 1), each key/value head repeated for the query heads that share it.
For the gate there is nothing to take over, so it starts between what goes in and what comes out. Everything else starts as in a new
model: convolutions as the identity, for Mamba-2. What is learned about positions is lost, except in retention, which rotates too.
The result must be trained on.

`heads N` takes over single heads instead of layers: attention keeps the others, and a Mamba-2 beside it has the chosen ones'
weights (`recurrent` of llm/mixers/attention.py).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from llm.block import LayerConfig
from llm.config import build
from llm.errors import ConfigError
from llm.export.layout import braided, layers_of
from llm.export.lazy import laziest
from llm.init import initialise
from llm.mixers import MIXERS
from llm.mixers.attention import AttentionConfig
from llm.mixers.mamba2 import Mamba2Config
from llm.mixers.mlstm import MLSTMConfig
from llm.mixers.retention import RetentionConfig
from llm.model import ModelConfig, model_kinds

WHAT = r"(?:layers\s+(?P<layers>\d+(?:\s*,\s*\d+)*)|lazy\s+(?P<lazy>\d+)|heads\s+(?P<heads>\d+))"
SPEC = re.compile(WHAT + r"\s*:\s*(?P<kind>\w+)(?:=(?P<window>\d+))?")
KINDS = ("mamba2", "mlstm", "retention", "window=N")


@dataclass(frozen=True)
class Replacement:
    """layers: by index; or the `lazy` laziest (`llm/export/lazy.py`). kind: of the new mixer. window: of attention that stays.

    heads: how many key/value heads, of all layers, those with the largest recency ratio. chosen: which of the layer's these are.
    """

    layers: tuple[int, ...]
    lazy: int
    kind: str
    window: int | None = None
    heads: int = 0
    chosen: tuple[int, ...] = ()


def parse(text: str) -> list[Replacement]:
    """`layers 2,3,6: mamba2; lazy 4: window=1024`. Raises ConfigError."""
    found = []
    for part in text.split(";"):
        match = SPEC.fullmatch(part.strip())
        kind = match["kind"] if match else ""
        if match is None or (kind == "window") != (match["window"] is not None) or kind not in ("window", *KINDS):
            raise ConfigError(
                f"--replace ({part.strip()}) must read `layers 2,3: KIND`, `lazy 2: KIND` or `heads 2: mamba2`; "
                f"KIND is one of {', '.join(KINDS)}"
            )
        if match["heads"] and kind != "mamba2":
            raise ConfigError(f"--replace ({part.strip()}): heads become a Mamba-2's; use `heads {match['heads']}: mamba2`")
        layers = tuple(int(i) for i in (match["layers"] or "").split(",") if i.strip())
        window = int(match["window"]) if match["window"] else None
        counts = int(match["lazy"] or 0), int(match["heads"] or 0)
        found.append(Replacement(layers, counts[0], "attention" if window else kind, window, counts[1]))
    return found


def planned(
    wanted: Sequence[Replacement], ratios: Mapping[int, float], of_heads: Mapping[tuple[int, int], float] = MappingProxyType({})
) -> dict[int, Replacement]:
    """Layer -> what comes there: layers that are named, then the laziest of the others, then heads of those that are left.

    Raises ConfigError.
    """
    plan = {i: one for one in wanted for i in one.layers}
    for one in wanted:
        left = {i: ratio for i, ratio in ratios.items() if i not in plan}
        if one.lazy > len(left):
            raise ConfigError(
                f"--replace asks for {one.lazy} lazy layers, and {len(left)} with full attention are left; ask for fewer"
            )
        plan |= dict.fromkeys(laziest(left, one.lazy), one)
    for one in wanted:
        heads = {place: ratio for place, ratio in of_heads.items() if place[0] not in plan}
        if one.heads > len(heads):
            raise ConfigError(f"--replace asks for {one.heads} heads, and {len(heads)} with full attention are left; ask for fewer")
        chosen = laziest(heads, one.heads)
        plan |= {i: replace(one, chosen=tuple(g for layer, g in chosen if layer == i)) for i, _ in chosen}
    return plan


def replaced(
    config: ModelConfig, weights: Mapping[str, Tensor], plan: Mapping[int, Replacement], seed: int = 0
) -> tuple[ModelConfig, Mapping[str, Tensor]]:
    """The model with other mixers in the layers that `plan` names. Raises ConfigError."""
    blocks = []
    new: dict[int, LayerConfig] = {}
    for i, layer in enumerate(layers_of(config)):
        if i in plan:
            layer = new[i] = replace(layer, mixer=successor(i, layer.mixer, plan[i], config.width))
        blocks.append((asdict(layer.mixer), asdict(layer.ffn)))
    unknown = sorted(set(plan) - set(range(config.depth)))
    if unknown:
        raise ConfigError(f"--replace names layer {unknown[0]}, and the model has 0 to {config.depth - 1}")
    changed = build(ModelConfig, {**asdict(config), **braided(blocks)}, model_kinds(""))
    changed.check()
    return changed, Replaced(config, weights, new, {i: plan[i].chosen for i in new}, seed)


def successor(i: int, old: Any, wanted: Replacement, width: int) -> Any:
    """The config of the mixer that comes after the attention `old` of layer i."""
    if not isinstance(old, AttentionConfig):
        raise ConfigError(f"--replace names layer {i}, which is {old.kind}; only attention can be replaced")
    if wanted.window is not None:
        return replace(old, window=wanted.window)
    heads, kv_heads, channels = old.sizes(width)
    if 0 < len(wanted.chosen) < kv_heads:
        taken = len(wanted.chosen) * heads // kv_heads
        recurrent = Mamba2Config(heads=taken, groups=taken, state=channels, head_dim=channels)
        left = kv_heads - len(wanted.chosen)
        return replace(old, heads=heads - taken, kv_heads=left, head_dim=channels, recurrent=recurrent)
    if heads * channels % width or (wanted.kind != "mamba2" and heads * channels != width):
        raise ConfigError(
            f"--replace: layer {i}'s {heads} heads of {channels} channels must make up the width ({width}) of {wanted.kind}; "
            "replace layers of another model, or use window=N"
        )
    if wanted.kind == "mamba2":
        return Mamba2Config(heads=heads, groups=heads, state=channels, expand=heads * channels // width)
    if wanted.kind == "mlstm":
        return MLSTMConfig(heads=heads, qk_factor=1.0)
    return RetentionConfig(heads=heads, value_factor=1, rope_theta=old.rope_theta)


class Replaced(Mapping[str, Tensor]):
    """The weights of the changed model: those of layers that stay as they are, of the others made when asked for."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, Tensor],
        new: Mapping[int, LayerConfig],
        chosen: Mapping[int, tuple[int, ...]],
        seed: int,
    ):
        self.config, self.weights, self.new, self.chosen, self.seed = config, weights, new, chosen, seed
        self._made: tuple[int, dict[str, Tensor]] = (-1, {})

    def _layer(self, i: int) -> dict[str, Tensor]:
        if self._made[0] != i:
            mixer, old, attention = self.new[i].mixer, layers_of(self.config)[i].mixer, self._attention(i)
            if isinstance(mixer, AttentionConfig) and self.chosen[i]:
                made = divided(mixer, old, attention, self.chosen[i], self.config, self.seed + i)
            else:
                made = started(mixer, old, attention, self.config, self.seed + i)
            self._made = i, made
        return self._made[1]

    def _attention(self, i: int) -> dict[str, Tensor]:
        prefix = f"blocks.{i}.mixer."
        return {name.removeprefix(prefix): self.weights[name] for name in self.weights if name.startswith(prefix)}

    def __getitem__(self, name: str) -> Tensor:
        match = re.match(r"blocks\.(\d+)\.mixer\.(.*)", name)
        if match and int(match[1]) in self.new:
            return self._layer(int(match[1]))[match[2]]
        return self.weights[name]

    def __iter__(self) -> Iterator[str]:
        for i, mixer in self.new.items():
            with torch.device("meta"):
                names = MIXERS[mixer.mixer.kind][1](mixer.mixer, self.config.width).state_dict()
            yield from (f"blocks.{i}.mixer.{name}" for name in names)
        replaced_ones = tuple(f"blocks.{i}.mixer." for i in self.new)
        yield from (name for name in self.weights if not name.startswith(replaced_ones))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def divided(
    new: AttentionConfig,
    old: AttentionConfig,
    attention: Mapping[str, Tensor],
    chosen: Sequence[int],
    config: ModelConfig,
    seed: int,
) -> dict[str, Tensor]:
    """Weights of an attention some of whose key/value heads, with the queries that share them, have become a Mamba-2."""
    heads, kv_heads, channels = old.sizes(config.width)
    taken = len(chosen) * heads // kv_heads
    those = replace(old, heads=taken, kv_heads=len(chosen), head_dim=channels)
    recurrent = started(new.recurrent, those, heads_of(attention, chosen, kv_heads), config, seed)
    kept = heads_of(attention, [g for g in range(kv_heads) if g not in chosen], kv_heads)
    return kept | {f"recurrent.{name}": x for name, x in recurrent.items()}


def heads_of(attention: Mapping[str, Tensor], wanted: Sequence[int], kv_heads: int) -> dict[str, Tensor]:
    """An attention's weights, of some key/value heads and the queries that share them."""
    found = dict(attention)
    for name, x in attention.items():
        if name.endswith("_proj.weight"):
            dim = 1 if name.startswith("out") else 0
            found[name] = x.unflatten(dim, (kv_heads, -1)).index_select(dim, torch.tensor(wanted)).flatten(dim, dim + 1)
    return found


def started(new: Any, old: AttentionConfig, attention: Mapping[str, Tensor], config: ModelConfig, seed: int) -> dict[str, Tensor]:
    """The new mixer's weights by name, from those of the attention before it."""
    if isinstance(new, AttentionConfig):
        return dict(attention)
    width = config.width
    heads, kv_heads, channels = old.sizes(width)
    with torch.device("meta"):
        mixer = MIXERS[new.kind][1](new, width)
    mixer.to_empty(device="cpu")
    initialise(mixer, seed, config.depth)
    q, out = attention["q_proj.weight"].float(), attention["out_proj.weight"].float()
    k, v = (
        attention[f"{x}_proj.weight"]
        .float()
        .unflatten(0, (kv_heads, channels))
        .repeat_interleave(heads // kv_heads, 0)
        .flatten(0, 1)
        for x in "kv"
    )
    gate = (out.T + v) / 2
    weights = {name: x.detach().clone() for name, x in mixer.state_dict().items()}
    weights["out_proj.weight"] = out
    if isinstance(new, Mamba2Config):
        steps = weights["in_proj.weight"][-heads:]
        weights["in_proj.weight"] = torch.cat([gate, v, k, q * channels**-0.5, steps])
        weights["conv_weight"] = torch.zeros_like(weights["conv_weight"])
        weights["conv_weight"][:, -1] = 1
    else:
        weights |= {"q_proj.weight": q, "k_proj.weight": k, "v_proj.weight": v, "gate_proj.weight": gate}
    return weights
