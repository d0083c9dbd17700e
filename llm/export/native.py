"""Architectures of `transformers` that some braids are: one map of settings and one of names for each, read both ways.

A model can be exported to an architecture without loss if its config, written in the architecture's words and read back, is the
same: so no list of conditions is kept apart from the map. Names: theirs -> ours; several of ours are joined along their first
dimension.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import CONFIG_MAPPING

from llm.config import build
from llm.errors import ConfigError
from llm.export import settings
from llm.export.layout import differences, layers_of
from llm.export.settings import Values
from llm.model import Decoder, ModelConfig, model_kinds

Names = Mapping[str, str | tuple[str, ...]]
# (their name, our names) of every weight of a model
WeightNames = list[tuple[str, tuple[str, ...]]]

ATTENTION = {f"self_attn.{x}_proj.weight": f"mixer.{x}_proj.weight" for x in "qkv"} | {
    "self_attn.o_proj.weight": "mixer.out_proj.weight"
}
QK_NORM = {f"self_attn.{x}_norm.weight": f"mixer.{x}_norm.norm_weight" for x in "qk"}
SWIGLU = {f"mlp.{x}_proj.weight": f"ffn.{x}_proj.weight" for x in ("gate", "up", "down")}
CONV = {"conv1d.weight": "mixer.conv_weight", "conv1d.bias": "mixer.conv_bias"}
SSM = {"A_log": "mixer.A_log", "D": "mixer.D", "in_proj.weight": "mixer.in_proj.weight", "out_proj.weight": "mixer.out_proj.weight"}
MAMBA = {
    **SSM,
    **CONV,
    "x_proj.weight": "mixer.x_proj.weight",
    "dt_proj.weight": "mixer.dt_proj.weight",
    "dt_proj.bias": "mixer.dt_bias",
}
MAMBA2 = {**SSM, **CONV, "dt_bias": "mixer.dt_bias", "norm.weight": "mixer.norm_weight"}
MLSTM = {
    "q.weight": "mixer.q_proj.weight",
    "k.weight": "mixer.k_proj.weight",
    "v.weight": "mixer.v_proj.weight",
    "ogate_preact.weight": "mixer.gate_proj.weight",
    "igate_preact.weight": "mixer.input_weight",
    "igate_preact.bias": "mixer.input_bias",
    "fgate_preact.weight": "mixer.forget_weight",
    "fgate_preact.bias": "mixer.forget_bias",
    "multihead_norm.weight": "mixer.head_norm_weight",
    "out_proj.weight": "mixer.out_proj.weight",
}
# A shape of theirs that is not ours: a channel dimension of 1, a weight for each channel instead of head and channel.
RESHAPED: dict[str, Callable[[Tensor], Tensor]] = {"conv1d.weight": lambda x: x[:, None], "multihead_norm.weight": torch.flatten}


def _under(prefix: str, names: Names) -> dict[str, str | tuple[str, ...]]:
    return {prefix + theirs: ours for theirs, ours in names.items()}


def _norms(mixer: str, ffn: str | None) -> Names:
    return {mixer: "mixer_norm.norm_weight"} | ({} if ffn is None else {ffn: "ffn_norm.norm_weight"})


@dataclass(frozen=True)
class Architecture:
    """A causal language model of `transformers`.

    whole, layer: names of the model's own weights, and of layer i's, under `prefix.format(i)`, by the mixer's kind. write, read:
    our settings -> theirs, theirs -> ours. factors: of our weights, by which settings of theirs are folded in when they are read.
    chunks, left_padded, bfloat16: whether its code in `transformers` continues from a cache with several tokens, minds padding, and
    runs in bfloat16. needs: the first major version whose code is right.
    """

    causal: str
    whole: Names
    prefix: str
    layer: Mapping[str, Names]
    write: Callable[[ModelConfig, int], Values]
    read: Callable[[Values], Values]
    factors: Callable[[Values], dict[str, float]] = field(default=lambda values: {})
    chunks: bool = False
    left_padded: bool = True
    bfloat16: bool = True
    needs: int = 4

    def parts(self) -> tuple[str, ...]:
        """What of the logits can be compared (`llm/export/verify.py`)."""
        return ("full", "steps", *(("chunks",) if self.chunks else ()), *(("left_padded",) if self.left_padded else ()))


def _transformer(embedding: str = "model.embed_tokens.weight", norm: str = "model.norm.weight") -> Names:
    return {embedding: "embedding", norm: "norm.norm_weight", "lm_head.weight": "head"}


_LLAMA_LAYER = {**_norms("input_layernorm.weight", "post_attention_layernorm.weight"), **ATTENTION, **SWIGLU}
_SSM_WHOLE = _transformer("backbone.embeddings.weight", "backbone.norm_f.weight")
_GRANITE_FFN: Names = {
    "shared_mlp.input_linear.weight": ("ffn.gate_proj.weight", "ffn.up_proj.weight"),
    "shared_mlp.output_linear.weight": "ffn.down_proj.weight",
}
_GRANITE_REST: Names = {**_norms("input_layernorm.weight", "post_attention_layernorm.weight"), **_GRANITE_FFN}
_BAMBA_REST: Names = {
    **_norms("input_layernorm.weight", "pre_ff_layernorm.weight"),
    **{f"feed_forward.{x}_proj.weight": f"ffn.{x}_proj.weight" for x in ("gate", "up", "down")},
}
_XLSTM_FFN = {
    "ffn.proj_up_gate.weight": "ffn.gate_proj.weight",
    "ffn.proj_up.weight": "ffn.up_proj.weight",
    "ffn.proj_down.weight": "ffn.down_proj.weight",
}

# In the order in which an automatic choice tries them.
ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(
        "LlamaForCausalLM",
        _transformer(),
        "model.layers.{}.",
        {"attention": _LLAMA_LAYER},
        settings.to_llama,
        settings.of_llama,
        chunks=True,
    ),
    "mistral": Architecture(
        "MistralForCausalLM",
        _transformer(),
        "model.layers.{}.",
        {"attention": _LLAMA_LAYER},
        settings.to_mistral,
        settings.of_mistral,
        chunks=True,
    ),
    "qwen3": Architecture(
        "Qwen3ForCausalLM",
        _transformer(),
        "model.layers.{}.",
        {"attention": _LLAMA_LAYER | QK_NORM},
        settings.to_qwen3,
        settings.of_qwen3,
        chunks=True,
    ),
    "mamba": Architecture(
        "MambaForCausalLM",
        _SSM_WHOLE,
        "backbone.layers.{}.",
        {"mamba": {**_norms("norm.weight", None), **_under("mixer.", MAMBA)}},
        settings.to_mamba,
        settings.of_mamba,
    ),
    "mamba2": Architecture(
        "Mamba2ForCausalLM",
        _SSM_WHOLE,
        "backbone.layers.{}.",
        {"mamba2": {**_norms("norm.weight", None), **_under("mixer.", MAMBA2)}},
        settings.to_mamba2,
        settings.of_mamba2,
    ),
    "xlstm": Architecture(
        "xLSTMForCausalLM",
        _transformer("backbone.embeddings.weight", "backbone.out_norm.weight"),
        "backbone.blocks.{}.",
        {"mlstm": {**_norms("norm_mlstm.weight", "norm_ffn.weight"), **_under("mlstm_layer.", MLSTM), **_XLSTM_FFN}},
        settings.to_xlstm,
        settings.of_xlstm,
        left_padded=False,
        # 5.23 multiplies float32 with bfloat16 in its own PyTorch code, which refuses
        bfloat16=False,
        # before, its own PyTorch code fails beyond one chunk of tokens
        needs=5,
    ),
    "granitemoehybrid": Architecture(
        "GraniteMoeHybridForCausalLM",
        _transformer(),
        "model.layers.{}.",
        {"attention": {**ATTENTION, **_GRANITE_REST}, "mamba2": {**_under("mamba.", MAMBA2), **_GRANITE_REST}},
        settings.to_granite,
        settings.of_granite,
        settings.granite_factors,
    ),
    "bamba": Architecture(
        "BambaForCausalLM",
        _transformer(norm="model.final_layernorm.weight"),
        "model.layers.{}.",
        {"attention": {**ATTENTION, **_BAMBA_REST}, "mamba2": {**_under("mamba.", MAMBA2), **_BAMBA_REST}},
        settings.to_bamba,
        settings.of_bamba,
    ),
}


def model_config(model_type: str, values: Values) -> ModelConfig:
    """Our config of a model of `model_type`, from all settings of its class. Raises ConfigError."""
    return build(ModelConfig, ARCHITECTURES[model_type].read(values), model_kinds(""))


def needs(model_type: str, config: ModelConfig) -> int:
    """The first major version of transformers whose code for the model is right."""
    # version 4 norms all groups of Mamba-2 together
    grouped = any(getattr(layer.mixer, "groups", 1) > 1 for layer in layers_of(config))
    # and gives Bamba no scaled positions
    scaled = model_type == "bamba" and any(getattr(layer.mixer, "rope_scaling", None) for layer in layers_of(config))
    return max(ARCHITECTURES[model_type].needs, 5 if grouped or scaled else 4)


def losses(model_type: str, config: ModelConfig) -> list[str]:
    """What of a model an architecture cannot hold, in words; empty: it can hold all of it."""
    architecture, installed, needed = ARCHITECTURES[model_type], transformers.__version__, needs(model_type, config)
    if int(installed.split(".")[0]) < needed:
        return [f"transformers ({installed}) is too old, as its code for this model is right from {needed}.0 on: upgrade it"]
    strange = {layer.mixer.kind for layer in layers_of(config)} - set(architecture.layer)
    if strange:
        return [f"it has no layers of {' or '.join(sorted(strange))}"]
    try:
        theirs = CONFIG_MAPPING[model_type].from_dict(architecture.write(config, 1)).to_dict()
        return differences(config, model_config(model_type, theirs))
    except (ConfigError, ValueError, StrictDataclassError) as error:
        return [" ".join(str(error).split())]


def choose(config: ModelConfig) -> str | None:
    """The first architecture that can hold the model; None: none can."""
    return next((name for name in ARCHITECTURES if not losses(name, config)), None)


def pairs(model_type: str, config: ModelConfig) -> WeightNames:
    """The names of every weight of the model."""
    architecture = ARCHITECTURES[model_type]
    with torch.device("meta"):
        present = set(Decoder(config).state_dict())
    tables = [("", "", architecture.whole)]
    for i, layer in enumerate(layers_of(config)):
        tables.append((architecture.prefix.format(i), f"blocks.{i}.", architecture.layer[layer.mixer.kind]))
    found: WeightNames = []
    for their_prefix, our_prefix, names in tables:
        for theirs, ours in names.items():
            full = tuple(our_prefix + name for name in ((ours,) if isinstance(ours, str) else ours))
            if full[0] in present:
                found.append((their_prefix + theirs, full))
    return found


def joined(theirs: str, parts: list[Tensor]) -> Tensor:
    """Their tensor from ours."""
    whole = parts[0] if len(parts) == 1 else torch.cat(parts)
    reshape = next((change for name, change in RESHAPED.items() if theirs.endswith(name)), None)
    return whole if reshape is None else reshape(whole)


def parted(whole: Tensor, shapes: list[torch.Size]) -> list[Tensor]:
    """Our tensors from theirs."""
    if len(shapes) == 1:
        return [whole.reshape(shapes[0])]
    return list(whole.split([shape[0] for shape in shapes]))
