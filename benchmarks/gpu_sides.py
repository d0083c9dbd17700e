"""Layers that `gpu.py` measures: ours, and those of the packages whose kernels ours run."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

import torch
from torch import nn

from llm.config import build
from llm.init import initialise
from llm.mixers import MIXERS
from llm.model import ModelConfig, model_kinds
from llm.train.precision import cast_model

# with their heads, as a share of the width's
KINDS: dict[str, float] = {"attention": 1, "mamba": 0, "mamba2": 4, "mlstm": 0.5, "retention": 0.5, "slstm": 2, "titans": 1}


@dataclass(frozen=True)
class Sizes:
    """heads: of attention. braids: name -> (width, depth)."""

    width: int
    heads: int
    tokens: tuple[int, ...]
    braids: dict[str, tuple[int, int]]

    def at(self, tokens: list[int] | None) -> "Sizes":
        return replace(self, tokens=tuple(tokens)) if tokens else self


def mixer_of(kind: str, heads: int) -> dict[str, Any]:
    return {"kind": kind} | ({"heads": max(1, int(KINDS[kind] * heads))} if KINDS[kind] else {})


def ours(kind: str, sizes: Sizes, device: torch.device) -> nn.Module:
    """As a bf16 run holds it: pinned parameters in float32."""
    config, module = MIXERS[kind]
    settings = mixer_of(kind, sizes.heads)
    with torch.device("meta"):
        layer = module(config(**{name: value for name, value in settings.items() if name != "kind"}), sizes.width)
    layer.to_empty(device=device)
    initialise(layer, 0, 1)
    cast_model(layer)
    return layer


def braid(width: int, depth: int, sizes: Sizes) -> ModelConfig:
    """Five kinds of mixers in turns, with a vocabulary of 50304."""
    heads = max(2, sizes.heads * width // sizes.width)
    layers = {
        kind: {"mixer": mixer_of(kind, heads), "ffn": {"kind": "none" if kind == "mamba" else "swiglu"}}
        for kind in ("mamba", "mlstm", "retention", "titans", "attention")
    }
    settings = {"width": width, "depth": depth, "vocab_size": 50304, "layers": layers, "pattern": list(layers)}
    return build(ModelConfig, settings, model_kinds(""))


Load = Callable[[str], ModuleType]


def _mamba(sizes: Sizes, load: Load) -> dict[str, Any]:
    return {"d_model": sizes.width}


def _attention(sizes: Sizes, load: Load) -> dict[str, Any]:
    rotary = sizes.width // sizes.heads
    settings = {"embed_dim": sizes.width, "num_heads": sizes.heads, "causal": True, "use_flash_attn": True}
    return settings | {"rotary_emb_dim": rotary, "qkv_proj_bias": False, "out_proj_bias": False}


def _retention(sizes: Sizes, load: Load) -> dict[str, Any]:
    return {"hidden_size": sizes.width, "num_heads": mixer_of("retention", sizes.heads)["heads"]}


def _mlstm(sizes: Sizes, load: Load) -> dict[str, Any]:
    """xLSTM-7B's layer on mlstm_kernels' fastest kernel."""
    package, heads = load("xlstm.xlstm_large.model"), mixer_of("mlstm", sizes.heads)["heads"]
    backend = package.mLSTMBackendConfig(
        chunkwise_kernel="chunkwise--triton_xl_chunk", chunk_size=128, return_last_states=False, autocast_kernel_dtype="bfloat16"
    )
    return {"config": package.mLSTMLayerConfig(embedding_dim=sizes.width, num_heads=heads, mlstm_backend=backend)}


def _slstm(sizes: Sizes, load: Load) -> dict[str, Any]:
    """On the CUDA kernel that the package builds at first use."""
    heads = mixer_of("slstm", sizes.heads)["heads"]
    config = load("xlstm.blocks.slstm.layer").sLSTMLayerConfig
    return {"config": config(embedding_dim=sizes.width, num_heads=heads, backend="cuda", dtype="bfloat16")}


def _titans(sizes: Sizes, load: Load) -> dict[str, Any]:
    """One matrix per head, errors at a chunk's first weights, as ours, but one rate for all of a chunk: less work than ours."""
    K, chunk = sizes.width // sizes.heads, MIXERS["titans"][0]().chunk
    matrix = load("titans_pytorch.memory_models").MemoryMLP(K, depth=1)
    settings = {"dim_head": K, "heads": sizes.heads, "chunk_size": chunk, "batch_size": chunk, "model": matrix}
    return {"dim": sizes.width, "pre_rmsnorm": False, "mem_model_norm_add_residual": False, **settings}


# kind -> (package, module:class, its settings)
THEIRS: dict[str, tuple[str, str, Callable[[Sizes, Load], dict[str, Any]]]] = {
    "attention": ("flash-attn", "flash_attn.modules.mha:MHA", _attention),
    "mamba": ("mamba-ssm", "mamba_ssm.modules.mamba_simple:Mamba", _mamba),
    "mamba2": ("mamba-ssm", "mamba_ssm.modules.mamba2:Mamba2", _mamba),
    "mlstm": ("xlstm", "xlstm.xlstm_large.model:mLSTMLayer", _mlstm),
    "retention": ("flash-linear-attention", "fla.layers:MultiScaleRetention", _retention),
    "slstm": ("xlstm", "xlstm.blocks.slstm.layer:sLSTMLayer", _slstm),
    "titans": ("titans-pytorch", "titans_pytorch.neural_memory:NeuralMemory", _titans),
}


def theirs(kind: str, sizes: Sizes, device: torch.device) -> tuple[str, nn.Module | None, str]:
    """(package, its layer, or why there is none)."""
    package = THEIRS[kind][0]
    if device.type != "cuda":
        return package, None, "runs on CUDA devices"
    try:
        return package, made(kind, sizes, importlib.import_module).to(device, torch.bfloat16), ""
    except Exception as error:
        # some are built at first use, and say in many ways why they cannot be
        return package, None, f"cannot be made: {error}"


def made(kind: str, sizes: Sizes, load: Load) -> nn.Module:
    """Its package's layer; load: imports a module of it."""
    _, entry, settings = THEIRS[kind]
    module, _, name = entry.partition(":")
    return getattr(load(module), name)(**settings(sizes, load))
