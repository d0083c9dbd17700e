"""A GGUF file for llama.cpp, float32, written from our weights; its `llama-quantize` makes it smaller.

llama.cpp's converter reads Hugging Face folders and guesses: it refuses tokenizers whose hash it does not know, leaves rotation out
of hybrids, and sets kv heads to 0 where layers have names it does not know. Here all of this is written from the config.
What differs there: `llama` and `granitehybrid` rotate neighbouring channels, so rows of queries and keys are put in that order;
decays are kept as A = -exp(A_log).
"""

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llm.data import DOCUMENT_TOKEN
from llm.errors import ConfigError, DataError
from llm.export import native
from llm.export.layout import layers_of
from llm.model import Decoder, ModelConfig

# architecture of transformers -> llama.cpp's
GGUF = {"llama": "llama", "qwen3": "qwen3", "mamba": "mamba", "mamba2": "mamba2", "granitemoehybrid": "granitehybrid"}
PRE_TOKENIZER = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
NORMAL, CONTROL, UNUSED = 1, 3, 5

WHOLE = {"token_embd.weight": "embedding", "output_norm.weight": "norm.norm_weight", "output.weight": "head"}
LAYER = {"attn_norm.weight": "mixer_norm.norm_weight", "ffn_norm.weight": "ffn_norm.norm_weight"}
LAYER |= {f"ffn_{x}.weight": f"ffn.{x}_proj.weight" for x in ("gate", "up", "down")}
MIXERS: dict[str, dict[str, str]] = {
    "attention": {f"attn_{x}.weight": f"mixer.{x}_proj.weight" for x in "qkv"}
    | {"attn_output.weight": "mixer.out_proj.weight"}
    | {f"attn_{x}_norm.weight": f"mixer.{x}_norm.norm_weight" for x in "qk"},
    "mamba": {
        "ssm_x.weight": "mixer.x_proj.weight",
        "ssm_dt.weight": "mixer.dt_proj.weight",
    },
    "mamba2": {"ssm_norm.weight": "mixer.norm_weight"},
}
SSM = {
    "ssm_in.weight": "mixer.in_proj.weight",
    "ssm_conv1d.weight": "mixer.conv_weight",
    "ssm_conv1d.bias": "mixer.conv_bias",
    "ssm_dt.bias": "mixer.dt_bias",
    "ssm_a": "mixer.A_log",
    "ssm_d": "mixer.D",
    "ssm_out.weight": "mixer.out_proj.weight",
}


def gguf_architecture(config: ModelConfig) -> str:
    """llama.cpp's architecture that the model is. Raises ConfigError when none is, or the package gguf is missing."""
    if not importlib.util.find_spec("gguf"):
        raise ConfigError("--gguf needs the package gguf; pip install 'braid-lm[gguf]'")
    name = next((n for n in GGUF if not native.losses(n, config)), None)
    if name is None:
        raise ConfigError(
            f"--gguf: llama.cpp has no architecture for this model; it has those of {', '.join(GGUF)}; leave --gguf out"
        )
    for i, layer in enumerate(layers_of(config)):
        window, expand = getattr(layer.mixer, "window", None), getattr(layer.mixer, "expand", 2)
        scaling = getattr(layer.mixer, "rope_scaling", None)
        if scaling is not None:
            raise ConfigError(f"--gguf: layer {i}'s rope_scaling ({scaling.kind}) is not written for llama.cpp; leave --gguf out")
        if window is not None:
            raise ConfigError(f"--gguf: layer {i}'s window ({window}) is not applied by llama.cpp's {GGUF[name]}; leave --gguf out")
        if expand != 2:
            raise ConfigError(f"--gguf: layer {i}'s expand ({expand}) must be 2 in llama.cpp; leave --gguf out")
    return GGUF[name]


def write_gguf(path: Path, model: Decoder, weights: Mapping[str, Tensor], folder: Path, context: int) -> None:
    """Write `path` from the weights and the tokenizer that lies in the exported `folder`, and read it back.

    Raises:
        ConfigError: llama.cpp has no such model, or the package is missing. DataError: a tokenizer that it does not have.
    """
    config = model.config
    architecture = gguf_architecture(config)
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("model")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    for key, value in settings(architecture, config, context).items():
        write = writer.add_array if isinstance(value, list) else _WRITE[type(value)](writer)
        write(f"{architecture}.{key}", value)
    _write_tokenizer(writer, folder, config.vocab_size)
    wanted = tensors(architecture, config, weights)
    for name, x in wanted.items():
        writer.add_tensor(name, x.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    assert set(read) == set(wanted), "a tensor was lost between writing and reading"
    assert all(torch.equal(torch.from_numpy(read[name].copy()).view_as(x), x) for name, x in wanted.items())


_WRITE: dict[type, Callable[[Any], Callable[[str, Any], None]]] = {
    bool: lambda writer: writer.add_bool,
    int: lambda writer: writer.add_uint32,
    float: lambda writer: writer.add_float32,
}


def settings(architecture: str, config: ModelConfig, context: int) -> dict[str, Any]:
    """The keys under the architecture's name."""
    layers = layers_of(config)
    kinds = {layer.mixer.kind: layer.mixer for layer in reversed(layers)}
    attention, ssm = kinds.get("attention"), kinds.get("mamba2") or kinds.get("mamba")
    hidden = next((layer.ffn.size(config.width) for layer in layers if layer.ffn.kind == "swiglu"), 0)
    found: dict[str, Any] = {"context_length": context, "embedding_length": config.width, "block_count": config.depth}
    # keys without a meaning here, which llama.cpp asks for all the same, are 0
    found |= {"feed_forward_length": hidden, "attention.head_count": 0, "attention.layer_norm_rms_epsilon": config.norm_eps}
    if attention is not None:
        heads, kv_heads, channels = attention.sizes(config.width)
        per_layer = [kv_heads if layer.mixer.kind == "attention" else 0 for layer in layers]
        found |= {"attention.head_count": heads, "attention.head_count_kv": kv_heads if ssm is None else per_layer}
        found |= {"attention.key_length": channels, "attention.value_length": channels, "rope.dimension_count": channels}
        found["rope.freq_base"] = attention.rope_theta or 10000.0
    if architecture == "granitehybrid":
        scale = 1.0 if attention is None else attention.sizes(config.width)[2] ** -0.5
        found |= {"attention.scale": scale, "embedding_scale": 1.0, "residual_scale": 1.0, "logit_scale": 1.0}
        # by this key alone does it decide whether positions turn
        found["rope.scaling.finetuned"] = attention is not None and attention.rope_theta is not None
    if ssm is not None:
        rank = ssm.heads if ssm.kind == "mamba2" else ssm.rank(config.width)
        found |= {"ssm.conv_kernel": ssm.taps, "ssm.inner_size": ssm.expand * config.width, "ssm.state_size": ssm.state}
        found |= {"ssm.time_step_rank": rank, "ssm.group_count": getattr(ssm, "groups", 0)}
    return found


def tensors(architecture: str, config: ModelConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """llama.cpp's tensors by name."""
    names = {there: ours for there, ours in WHOLE.items() if ours in weights}
    found = {there: weights[ours].detach().float() for there, ours in names.items()}
    for i, layer in enumerate(layers_of(config)):
        kind = layer.mixer.kind
        table = LAYER | MIXERS[kind] | ({} if kind == "attention" else SSM)
        for there, ours in table.items():
            if f"blocks.{i}.{ours}" in weights:
                x = weights[f"blocks.{i}.{ours}"].detach().float()
                found[f"blk.{i}.{there}"] = _converted(architecture, there, x, layer.mixer, config.width)
    return found


def _converted(architecture: str, name: str, x: Tensor, mixer: Any, width: int) -> Tensor:
    if name == "ssm_a":
        x = -x.exp()
    if mixer.kind == "mamba2":
        shapes = {"ssm_a": (-1, 1), "ssm_d": (-1, 1), "ssm_norm.weight": (mixer.groups, -1)}
        return x.reshape(shapes[name]) if name in shapes else x
    if architecture in ("llama", "granitehybrid") and name in ("attn_q.weight", "attn_k.weight") and mixer.rope_theta is not None:
        # channel i, which turns with i + K/2 here, to 2i; i + K/2 to 2i + 1
        channels = mixer.sizes(width)[2]
        return x.unflatten(0, (-1, 2, channels // 2)).transpose(1, 2).flatten(0, 2)
    return x


def _write_tokenizer(writer: Any, folder: Path, vocab_size: int) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    model, before = tokenizer["model"], tokenizer["pre_tokenizer"] or {}
    known = model["type"] == "BPE" and not tokenizer["normalizer"] and all(before.get(k) == v for k, v in PRE_TOKENIZER.items())
    if not known:
        raise DataError(
            f"--gguf: the tokenizer's pre-tokenizer ({before.get('type')}) must be GPT-2's byte level, as braid-data trains it; "
            "llama.cpp has no other by description; leave --gguf out"
        )
    special = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    by_id = {i: token for token, i in (model["vocab"] | special).items()}
    writer.add_tokenizer_model("gpt2")
    # named, not found by a hash over encoded text, which knows published tokenizers only
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([by_id.get(i, f"[PAD{i}]") for i in range(vocab_size)])
    types = [UNUSED if i not in by_id else CONTROL if by_id[i] in special else NORMAL for i in range(vocab_size)]
    writer.add_token_types(types)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    start = special[DOCUMENT_TOKEN]
    for write in (writer.add_bos_token_id, writer.add_eos_token_id, writer.add_pad_token_id):
        write(start)
    writer.add_add_bos_token(True)
    template = folder / "chat_template.jinja"
    if template.is_file():
        writer.add_chat_template(template.read_text())
