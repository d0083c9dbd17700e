"""A model's config layer by layer, with every default spelled out: what is compared to find out whether a format can hold it."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from llm.block import LayerConfig
from llm.mixers.attention import AttentionConfig
from llm.mixers.mamba import MambaConfig
from llm.model import ModelConfig

Layer = tuple[dict[str, Any], dict[str, Any]]


def layers_of(config: ModelConfig) -> list[LayerConfig]:
    """The config of each of the `depth` layers."""
    return [config.layers[name] for name in config.layer_names()]


def spelled_out(layer: LayerConfig, config: ModelConfig) -> Layer:
    """(mixer, channel layer) as keys and values, where settings that mean the same are the same."""
    mixer, ffn = layer.mixer, asdict(layer.ffn)
    if isinstance(mixer, AttentionConfig):
        _, kv_heads, head_dim = mixer.sizes(config.width)
        mixer = replace(mixer, kv_heads=kv_heads, head_dim=head_dim)
        # without norms their eps has no effect, and without positions the share that they turn
        mixer = mixer if mixer.qk_norm else replace(mixer, norm_eps=config.norm_eps)
        mixer = mixer if mixer.rope_theta is not None else replace(mixer, rope_fraction=1.0)
        if (scaling := mixer.rope_scaling) is not None:
            mixer = replace(mixer, rope_scaling=replace(scaling, fast=scaling.turns, scale=scaling.amplitude))
    if isinstance(mixer, MambaConfig):
        mixer = replace(mixer, dt_rank=mixer.rank(config.width))
    if "hidden" in ffn:
        ffn["hidden"] = layer.ffn.size(config.width)
    return asdict(mixer), ffn


def differences(wanted: ModelConfig, got: ModelConfig) -> list[str]:
    """What of `wanted` is otherwise in `got`, in words."""
    whole = ("width", "depth", "vocab_size", "tie_embeddings", "norm_eps", "logit_cap")
    found = [
        f"{key} ({getattr(wanted, key)}) would be {getattr(got, key)}" for key in whole if getattr(wanted, key) != getattr(got, key)
    ]
    if wanted.width_ratio != got.width_ratio:
        found.append(f"mup_base_width ({wanted.mup_base_width}), which scales the logits, would be {got.mup_base_width}")
    for i, (a, b) in enumerate(zip(layers_of(wanted), layers_of(got), strict=False)):
        for part, left, right in zip(("mixer", "ffn"), spelled_out(a, wanted), spelled_out(b, got), strict=True):
            changed = [key for key in left if left[key] != right.get(key)]
            found += [f"layer {i}'s {part}.{key} ({left[key]}) would be {right.get(key)}" for key in changed]
    return found


def braided(blocks: Sequence[Layer]) -> dict[str, Any]:
    """depth, layers and pattern of a model whose layers are `blocks`: each kind of layer named once, the shortest pattern."""
    distinct: list[Layer] = []
    for block in blocks:
        if block not in distinct:
            distinct.append(block)
    kinds = [mixer["kind"] for mixer, _ in distinct]
    names = [kind if kinds.count(kind) == 1 else f"{kind}_{kinds[: i + 1].count(kind)}" for i, kind in enumerate(kinds)]
    order = [names[distinct.index(block)] for block in blocks]
    period = next(p for p in range(1, len(order) + 1) if all(order[i] == order[i % p] for i in range(len(order))))
    layers = {name: {"mixer": mixer, "ffn": ffn} for name, (mixer, ffn) in zip(names, distinct, strict=True)}
    return {"depth": len(blocks), "layers": layers, "pattern": order[:period]}
