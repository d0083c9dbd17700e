"""Scaled rotary positions in the words of `transformers` (modeling_rope_utils.py), and theirs in ours."""

import math
from collections.abc import Mapping
from typing import Any

from llm.errors import ConfigError
from llm.ops.rotary import RopeScaling

# Theirs -> ours, by rope_type; both versions of transformers take these.
KEYS = {
    "linear": {"factor": "factor"},
    "llama3": {
        "factor": "factor",
        "original_max_position_embeddings": "context",
        "low_freq_factor": "slow",
        "high_freq_factor": "fast",
    },
    "yarn": {
        "factor": "factor",
        "original_max_position_embeddings": "context",
        "beta_slow": "slow",
        "beta_fast": "fast",
        "attention_factor": "scale",
    },
}
# Of the same dictionary in transformers 5, but not about scaling; `type` is the oldest spelling of rope_type.
BESIDE = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}


def to_rope_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """`rope_scaling` of config.json."""
    if scaling is None:
        return None
    ours = {"factor": scaling.factor, "context": scaling.context, "slow": scaling.slow, "fast": scaling.turns}
    ours |= {"scale": scaling.amplitude}
    names = KEYS[scaling.kind]
    return {"rope_type": scaling.kind, **{theirs: ours[mine] for theirs, mine in names.items()}}


def of_rope_scaling(values: Mapping[str, Any], max_positions: int | None) -> dict[str, Any] | None:
    """Settings of `RopeScaling`, from their dictionary. max_positions: of the model, where the first context is not named.

    Raises:
        ConfigError: a kind of scaling, or a setting of it, that is not here.
    """
    kind = values.get("rope_type") or values.get("type") or "default"
    if kind == "default":
        return None
    if kind not in KEYS:
        # `dynamic` and `longrope` turn keys anew when a sequence grows, which a state that is carried on cannot follow
        raise ConfigError(
            f"rope_type ({kind}) must be default, {', '.join(KEYS)}: other frequencies depend on how long the sequence is, and a "
            "cache of keys does not; set it to default in config.json and keep to max_position_embeddings, or to yarn and train on"
        )
    given = {key: value for key, value in values.items() if value is not None and key not in BESIDE}
    known = KEYS[kind]
    if {"mscale", "mscale_all_dim"} <= given.keys() and kind == "yarn":
        amplitudes = [1 + 0.1 * given.pop(key) * math.log(values["factor"]) for key in ("mscale", "mscale_all_dim")]
        given.setdefault("attention_factor", amplitudes[0] / amplitudes[1])
    if given.get("truncate") is True:
        del given["truncate"]
    strange = sorted(given.keys() - known)
    if strange:
        raise ConfigError(f"{kind}'s {strange[0]} ({given[strange[0]]}) has no setting here; import a model without it")
    if "context" in known.values():
        given.setdefault("original_max_position_embeddings", max_positions)
    return {"kind": kind, **{known[key]: value for key, value in given.items()}}
