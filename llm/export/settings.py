"""Our model settings in the words of `transformers`' architectures, and theirs in ours.

`to_*`: entries of config.json, in the spelling of transformers 4, which 5 reads too. `of_*`: from all settings of the
architecture's config class, as either version names them.
"""

from typing import Any

from llm.errors import ConfigError
from llm.export.layout import Layer, braided, layers_of
from llm.export.rope import of_rope_scaling, to_rope_scaling
from llm.mixers.attention import AttentionConfig
from llm.mixers.mamba import MambaConfig
from llm.mixers.mamba2 import Mamba2Config
from llm.mixers.mlstm import MLSTMConfig
from llm.model import ModelConfig

Values = dict[str, Any]

# What the layers here have no setting for: the values that are theirs.
PLAIN = {
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "hidden_act": ("silu", "swish"),
    "use_bias": (False,),
    "use_conv_bias": (True,),
    "mamba_conv_bias": (True,),
    "mamba_proj_bias": (False,),
    "num_local_experts": (0,),
    "add_out_norm": (True,),
    "v_dim_factor": (1.0,),
    "weight_mode": ("single",),
    "pretraining_tp": (1, None),
}


def _plain(values: Values) -> None:
    """Raise ConfigError where a layer of theirs does something that ours does not."""
    for key, known in PLAIN.items():
        if key in values and values[key] not in known:
            raise ConfigError(f"{key} ({values[key]}) must be {known[0]}: no layer here has another; import a model without it")
    low, high = values.get("time_step_limit") or (0.0, float("inf"))
    if low > 0 or high < float("inf"):
        raise ConfigError(
            f"time_step_limit ({low}, {high}) must not bind: Mamba-2's step is not clamped here; import a model without it"
        )


def _rope(values: Values) -> Values:
    """Settings of positions, from the spelling of transformers 4 or 5."""
    new = values.get("rope_parameters") or values.get("rope_scaling") or {}
    theta: Any = new.get("rope_theta", values.get("rope_theta"))
    fraction = new.get("partial_rotary_factor", values.get("partial_rotary_factor"))
    scaling = of_rope_scaling(new, values.get("max_position_embeddings"))
    return {"rope_theta": float(theta), "rope_fraction": 1.0 if fraction is None else float(fraction), "rope_scaling": scaling}


def _whole(values: Values, eps: float, blocks: list[Layer], logit_cap: float | None = None) -> Values:
    tied = bool(values.get("tie_word_embeddings"))
    sizes = {"width": values["hidden_size"], "vocab_size": values["vocab_size"]}
    return {**sizes, "tie_embeddings": tied, "norm_eps": eps, "logit_cap": logit_cap, **braided(blocks)}


def _sizes(config: ModelConfig) -> Values:
    sizes = {"hidden_size": config.width, "vocab_size": config.vocab_size, "num_hidden_layers": config.depth}
    return {**sizes, "tie_word_embeddings": config.tie_embeddings}


def _first(config: ModelConfig, kind: str) -> Any:
    """The config of the first layer of a kind; None: there is none."""
    return next((layer.mixer for layer in layers_of(config) if layer.mixer.kind == kind), None)


def _hidden(config: ModelConfig) -> int:
    """The first channel layer's size."""
    return next((layer.ffn.size(config.width) for layer in layers_of(config) if layer.ffn.kind == "swiglu"), 1)


def _heads(config: ModelConfig, context: int) -> Values:
    """Of attention, and its positions; one head where there is none."""
    first = _first(config, "attention") or AttentionConfig(heads=1)
    heads, kv_heads, _ = first.sizes(config.width)
    scaling = first.rope_scaling
    if scaling is not None and scaling.context is not None:
        context = max(context, int(scaling.factor * scaling.context))
    rope = {"rope_theta": first.rope_theta or 10000.0, "rope_scaling": to_rope_scaling(scaling), "max_position_embeddings": context}
    return {"num_attention_heads": heads, "num_key_value_heads": kv_heads, **rope}


def _swiglu(hidden: int) -> Values:
    return {"kind": "swiglu", "hidden": hidden}


def _attention(values: Values, **more: Any) -> Values:
    heads = {"heads": values["num_attention_heads"], "kv_heads": values["num_key_value_heads"]}
    return {"kind": "attention", **heads, "head_dim": values.get("head_dim"), **_rope(values), **more}


def to_llama(config: ModelConfig, context: int) -> Values:
    first = _first(config, "attention")
    channels = {"head_dim": first.sizes(config.width)[2], "intermediate_size": _hidden(config), "hidden_act": "silu"}
    biases = {"attention_bias": False, "mlp_bias": False}
    return {**_sizes(config), **_heads(config, context), **channels, "rms_norm_eps": config.norm_eps, **biases}


def of_llama(values: Values) -> Values:
    _plain(values)
    block = (_attention(values), _swiglu(values["intermediate_size"]))
    return _whole(values, values["rms_norm_eps"], [block] * values["num_hidden_layers"])


def to_mistral(config: ModelConfig, context: int) -> Values:
    return {**to_llama(config, context), "sliding_window": _first(config, "attention").window}


def of_mistral(values: Values) -> Values:
    _plain(values)
    block = (_attention(values, window=values["sliding_window"]), _swiglu(values["intermediate_size"]))
    return _whole(values, values["rms_norm_eps"], [block] * values["num_hidden_layers"])


def to_qwen3(config: ModelConfig, context: int) -> Values:
    windows = [layer.mixer.window for layer in layers_of(config)]
    window = next((w for w in windows if w is not None), None)
    kinds = ["full_attention" if w is None else "sliding_attention" for w in windows]
    sliding = {"use_sliding_window": window is not None, "sliding_window": window, "max_window_layers": config.depth}
    return {**to_llama(config, context), **sliding, "layer_types": kinds}


def of_qwen3(values: Values) -> Values:
    _plain(values)
    normed = {"qk_norm": True, "norm_eps": values["rms_norm_eps"]}
    windows = [values["sliding_window"] if kind == "sliding_attention" else None for kind in values["layer_types"]]
    ffn = _swiglu(values["intermediate_size"])
    return _whole(values, values["rms_norm_eps"], [(_attention(values, window=w, **normed), ffn) for w in windows])


def to_mamba(config: ModelConfig, context: int) -> Values:
    first: MambaConfig = _first(config, "mamba")
    sizes = {"state_size": first.state, "expand": first.expand, "intermediate_size": first.expand * config.width}
    sizes |= {"conv_kernel": first.taps, "time_step_rank": first.rank(config.width)}
    rest = {"layer_norm_epsilon": config.norm_eps, "use_bias": False, "use_conv_bias": True, "hidden_act": "silu"}
    return {**_sizes(config), **sizes, **rest, "residual_in_fp32": True}


def of_mamba(values: Values) -> Values:
    _plain(values)
    mixer = {"kind": "mamba", "state": values["state_size"], "expand": int(values["expand"]), "taps": values["conv_kernel"]}
    block = ({**mixer, "dt_rank": int(values["time_step_rank"])}, {"kind": "none"})
    return _whole(values, values["layer_norm_epsilon"], [block] * values["num_hidden_layers"])


def to_mamba2(config: ModelConfig, context: int) -> Values:
    first: Mamba2Config = _first(config, "mamba2")
    sizes = {"num_heads": first.heads, "head_dim": first.expand * config.width // first.heads, "state_size": first.state}
    sizes |= {"n_groups": first.groups, "expand": first.expand, "conv_kernel": first.taps, "chunk_size": 64}
    rest = {"layer_norm_epsilon": config.norm_eps, "use_bias": False, "use_conv_bias": True, "hidden_act": "silu"}
    return {**_sizes(config), **sizes, **rest, "residual_in_fp32": True}


def of_mamba2(values: Values) -> Values:
    _plain(values)
    mixer = {"kind": "mamba2", "heads": values["num_heads"], "state": values["state_size"], "groups": values["n_groups"]}
    mixer |= {"expand": int(values["expand"]), "taps": values["conv_kernel"], "norm_eps": values["layer_norm_epsilon"]}
    return _whole(values, values["layer_norm_epsilon"], [(mixer, {"kind": "none"})] * values["num_hidden_layers"])


def to_xlstm(config: ModelConfig, context: int) -> Values:
    first: MLSTMConfig = _first(config, "mlstm")
    for name, cap in (("gate_cap", first.gate_cap), ("logit_cap", config.logit_cap)):
        if cap is None:
            raise ConfigError(
                f"{name} (null) must be a number, as this architecture always caps; xLSTM 7B caps gates at 15, logits at 30"
            )
    sizes = {"embedding_dim": config.width, "num_blocks": config.depth, "num_heads": first.heads, "qk_dim_factor": first.qk_factor}
    # no rounding: the factor gives the size
    ffn = {"ffn_proj_factor": _hidden(config) / config.width, "ffn_round_up_to_multiple_of": 1, "v_dim_factor": 1.0}
    caps = {"gate_soft_cap": first.gate_cap, "output_logit_soft_cap": config.logit_cap}
    rest = {"norm_eps": config.norm_eps, "use_bias": False, "add_out_norm": True, "weight_mode": "single"}
    return {**_sizes(config), **sizes, **ffn, **caps, **rest, "chunk_size": 64, "return_last_states": True, "mode": "inference"}


def of_xlstm(values: Values) -> Values:
    _plain(values)
    width = values["hidden_size"]
    if values["tie_word_embeddings"]:
        raise ConfigError("tie_word_embeddings (True) must be False: this architecture has a head of its own; untie the embedding")
    if width % 64:
        raise ConfigError(f"hidden_size ({width}) must be a multiple of 64, which this architecture rounds to; use another width")
    factor, multiple = values["ffn_proj_factor"], values["ffn_round_up_to_multiple_of"]
    hidden = int((round(width * factor, 6) + multiple - 1) // multiple * multiple)
    queries = int((width * values["qk_dim_factor"] + 63) // 64 * 64)
    mixer = {"kind": "mlstm", "heads": values["num_heads"], "qk_factor": queries / width}
    mixer |= {"gate_cap": values["gate_soft_cap"], "norm_eps": values["norm_eps"]}
    cap = values["output_logit_soft_cap"]
    return _whole(values, values["norm_eps"], [(mixer, _swiglu(hidden))] * values["num_hidden_layers"], cap)


def _to_hybrid(config: ModelConfig, context: int) -> Values:
    """What Granite and Bamba share."""
    first: Mamba2Config = _first(config, "mamba2") or Mamba2Config(heads=1)
    ssm = {"mamba_n_heads": first.heads, "mamba_d_head": first.expand * config.width // first.heads, "mamba_d_state": first.state}
    ssm |= {"mamba_n_groups": first.groups, "mamba_expand": first.expand, "mamba_d_conv": first.taps, "mamba_chunk_size": 64}
    biases = {"attention_bias": False, "mamba_conv_bias": True, "mamba_proj_bias": False, "hidden_act": "silu"}
    return {**_sizes(config), **_heads(config, context), **ssm, "rms_norm_eps": config.norm_eps, **biases}


def _of_hybrid(values: Values, kinds: list[str], hidden: int, rope: Values) -> Values:
    _plain(values)
    eps = values["rms_norm_eps"]
    mamba2 = {"kind": "mamba2", "heads": values["mamba_n_heads"], "state": values["mamba_d_state"], "norm_eps": eps}
    mamba2 |= {"groups": values["mamba_n_groups"], "expand": int(values["mamba_expand"]), "taps": values["mamba_d_conv"]}
    attention = {**_attention(values), **rope}
    mixers = [attention if kind in ("attention", "full_attention") else mamba2 for kind in kinds]
    return _whole(values, eps, [(mixer, _swiglu(hidden)) for mixer in mixers])


def to_granite(config: ModelConfig, context: int) -> Values:
    first = _first(config, "attention")
    scale = 1.0 if first is None else first.sizes(config.width)[2] ** -0.5
    multipliers = {"embedding_multiplier": 1.0, "residual_multiplier": 1.0, "logits_scaling": 1.0, "attention_multiplier": scale}
    position = {"position_embedding_type": "rope" if first is not None and first.rope_theta is not None else "nope"}
    # the names that every version of transformers and the converters of other engines know
    kinds = ["attention" if layer.mixer.kind == "attention" else "mamba" for layer in layers_of(config)]
    sizes: Values = {"shared_intermediate_size": _hidden(config), "intermediate_size": _hidden(config), "num_local_experts": 0}
    sizes |= {"num_experts_per_tok": 0, "layer_types": kinds}
    return {**_to_hybrid(config, context), **multipliers, **position, **sizes}


def of_granite(values: Values) -> Values:
    rope = {} if values["position_embedding_type"] == "rope" else {"rope_theta": None}
    return _of_hybrid(values, values["layer_types"], values["shared_intermediate_size"], rope)


def granite_factors(values: Values) -> dict[str, float]:
    """Granite's four multipliers as factors of weights: of a layer's matrices, of the embedding and of what the head reads."""
    K = values["hidden_size"] // values["num_attention_heads"]
    embedding, residual = values["embedding_multiplier"], values["residual_multiplier"]
    head = values["logits_scaling"] * (embedding if values["tie_word_embeddings"] else 1.0)
    return {
        "embedding": embedding,
        "norm.norm_weight": 1 / head,
        "mixer.q_proj.weight": values["attention_multiplier"] * K**0.5,
        "mixer.out_proj.weight": residual,
        "ffn.down_proj.weight": residual,
    }


def to_bamba(config: ModelConfig, context: int) -> Values:
    first = _first(config, "attention")
    theta, fraction = (10000.0, 1.0) if first is None else (first.rope_theta or 10000.0, first.rope_fraction)
    # transformers 4 takes the first two, 5 the third: both have other values by default
    rope = {"rope_theta": theta, "partial_rotary_factor": fraction}
    scaling = to_rope_scaling(first.rope_scaling) if first is not None else None
    rope |= {"rope_parameters": {"rope_type": "default", **rope, **(scaling or {})}}
    indices = [i for i, layer in enumerate(layers_of(config)) if layer.mixer.kind == "attention"]
    return {
        **_to_hybrid(config, context),
        **rope,
        "attn_layer_indices": indices,
        "intermediate_size": _hidden(config),
        "mlp_bias": False,
    }


def of_bamba(values: Values) -> Values:
    indices = values["attn_layer_indices"] or []
    kinds = ["attention" if i in indices else "mamba" for i in range(values["num_hidden_layers"])]
    return _of_hybrid(values, kinds, values["intermediate_size"], {})
