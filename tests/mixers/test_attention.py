"""Attention against `transformers` with copied weights: Llama's decoder layer, Gemma 2's soft cap, Qwen3-Next's output gate."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.models.gemma2 import modeling_gemma2 as gemma2
from transformers.models.llama import modeling_llama as llama
from transformers.models.qwen3_next import modeling_qwen3_next as qwen3_next

from llm.block import Block, LayerConfig
from llm.errors import ConfigError
from llm.init import initialise
from llm.layers.swiglu import SwiGLUConfig
from llm.mixers.attention import Attention, AttentionConfig
from llm.ops.rotary import RopeScaling

WIDTH, HEADS, KV_HEADS, HEAD_DIM, WINDOW, TOKENS = 32, 4, 2, 16, 70, 600
SIZES = {"hidden_size": WIDTH, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD_DIM}
SIZES |= {"num_hidden_layers": 2, "attn_implementation": "eager", "vocab_size": 11, "pad_token_id": 0}
OURS = AttentionConfig(heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM)
SOFT_CAP, QUERY_SCALAR = 2.0, 40


class Pair(NamedTuple):
    """Ours and theirs; `of` gives, by our parameters' names, (their tensors, how many times ours these are)."""

    ours: nn.Module
    theirs: nn.Module
    run: Callable[[nn.Module, Tensor], Tensor]
    of: Callable[[Callable[[Tensor], Tensor]], dict[str, tuple[Tensor, float]]]


def started(module: nn.Module) -> nn.Module:
    """With weights that make scores wide enough for a cap to bend them, and norms away from 1."""
    initialise(module, seed=0, depth=1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.mul_(1.5 if name.endswith(("q_proj.weight", "k_proj.weight")) else 1.0)
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return module


def their_run(config, rotary: nn.Module, make_mask=create_causal_mask) -> Callable[[nn.Module, Tensor], Tensor]:
    def run(theirs: nn.Module, x: Tensor) -> Tensor:
        position = torch.arange(x.shape[1])[None]
        mask = make_mask(config=config, inputs_embeds=x, attention_mask=None, past_key_values=None, position_ids=position)
        out = theirs(x, attention_mask=mask, position_embeddings=rotary(x, position))
        return out[0] if isinstance(out, tuple) else out

    return run


def projections(attention: nn.Module, of, prefix: str = "", q_factor: float = 1.0) -> dict[str, tuple[Tensor, float]]:
    names = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "out_proj": "o_proj"}
    tensors = {f"{prefix}{ours}.weight": (of(getattr(attention, name).weight), 1.0) for ours, name in names.items()}
    return tensors | {f"{prefix}q_proj.weight": (of(attention.q_proj.weight), q_factor)}


def gemma2_attention(window: int | None = None) -> Pair:
    kind, make_mask = ("full_attention", create_causal_mask)
    if window is not None:
        kind, make_mask = ("sliding_attention", create_sliding_window_causal_mask)
    caps = {"attn_logit_softcapping": SOFT_CAP, "query_pre_attn_scalar": QUERY_SCALAR}
    config = gemma2.Gemma2Config(**SIZES, **caps, sliding_window=WINDOW, layer_types=[kind] * 2)
    theirs = gemma2.Gemma2Attention(config, layer_idx=0)
    ours = started(Attention(AttentionConfig(**vars(OURS) | {"soft_cap": SOFT_CAP, "window": window}), WIDTH))
    q_factor = (QUERY_SCALAR / HEAD_DIM) ** 0.5
    run = their_run(config, gemma2.Gemma2RotaryEmbedding(config), make_mask)
    return Pair(ours, theirs, run, lambda of: projections(theirs, of, q_factor=q_factor))


def qwen3_next_attention() -> Pair:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0}
    config = qwen3_next.Qwen3NextConfig(**SIZES, rope_parameters=rope)
    theirs = qwen3_next.Qwen3NextAttention(config, layer_idx=0)
    ours = started(Attention(AttentionConfig(**vars(OURS) | {"gate": True, "qk_norm": True}), WIDTH))

    def of(tensor):
        q, gate = tensor(theirs.q_proj.weight).view(HEADS, 2, HEAD_DIM, WIDTH).unbind(1)
        norms = {f"{x}.norm_weight": (tensor(getattr(theirs, x).weight), 1.0) for x in ("q_norm", "k_norm")}
        return projections(theirs, tensor) | {"q_proj.weight": (q, 1.0), "gate_proj.weight": (gate, 1.0)} | norms

    return Pair(ours, theirs, their_run(config, qwen3_next.Qwen3NextRotaryEmbedding(config)), of)


def llama_layer() -> Pair:
    config = llama.LlamaConfig(**SIZES, intermediate_size=96)
    theirs = llama.LlamaDecoderLayer(config, layer_idx=0)
    ours = started(Block(LayerConfig(OURS, SwiGLUConfig(hidden=96)), WIDTH, config.rms_norm_eps))

    def of(tensor):
        ffn = {f"ffn.{x}.weight": (tensor(getattr(theirs.mlp, x).weight), 1.0) for x in ("gate_proj", "up_proj", "down_proj")}
        norms = {"mixer_norm": theirs.input_layernorm, "ffn_norm": theirs.post_attention_layernorm}
        named = {f"{name}.norm_weight": (tensor(norm.weight), 1.0) for name, norm in norms.items()}
        return projections(theirs.self_attn, tensor, "mixer.") | ffn | named

    return Pair(ours, theirs, their_run(config, llama.LlamaRotaryEmbedding(config)), of)


def our_run(ours: nn.Module, x: Tensor) -> Tensor:
    return (ours(x, None, None) if isinstance(ours, Block) else ours(x))[0]


def copy_weights(pair: Pair) -> None:
    # Qwen3-Next's norms hold the weight less one
    less = 1.0 if isinstance(pair.theirs, qwen3_next.Qwen3NextAttention) else 0.0
    theirs = pair.of(lambda p: p.data)
    assert theirs.keys() == dict(pair.ours.named_parameters()).keys()
    for name, parameter in pair.ours.named_parameters():
        target, factor = theirs[name]
        target.copy_(factor * parameter.detach().view_as(target) - (less if parameter.ndim == 1 else 0.0))


def output_and_gradients(run: Callable[[Tensor], Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(2, TOKENS, WIDTH, generator=generator).bfloat16() for _ in range(2))
    x = x.to(dtype).requires_grad_()
    y = run(x)
    (y * weight.to(dtype)).sum().backward()
    return {"y": y.detach(), "x": x.grad}


def our_results(pair: Pair, dtype: torch.dtype) -> dict[str, Tensor]:
    results = output_and_gradients(lambda x: our_run(pair.ours, x), dtype)
    return results | {name: parameter.grad for name, parameter in pair.ours.named_parameters()}


def their_results(pair: Pair, dtype: torch.dtype) -> dict[str, Tensor]:
    results = output_and_gradients(lambda x: pair.run(pair.theirs, x), dtype)
    return results | {name: gradient * factor for name, (gradient, factor) in pair.of(lambda p: p.grad).items()}


def error(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double().view_as(a)
    return ((a - b).norm() / b.norm()).item()


PAIRS = {
    "llama layer": llama_layer,
    "gemma2": gemma2_attention,
    "gemma2, window": lambda: gemma2_attention(WINDOW),
    "qwen3-next, gate": qwen3_next_attention,
}


@pytest.mark.parametrize("name", PAIRS)
def test_outputs_and_gradients_are_those_of_transformers(name):
    pair = PAIRS[name]()
    copy_weights(pair)
    ours, theirs = our_results(pair, torch.float32), their_results(pair, torch.float32)
    errors = {key: error(ours[key], theirs[key]) for key in ours}
    assert max(errors.values()) <= 1e-5, errors


@pytest.mark.parametrize("name", ["gemma2", "gemma2, window"])
def test_bfloat16_is_as_near_as_transformers(name):
    """Both in bfloat16, against theirs in float32 on the same weights; theirs keeps its scores in bfloat16, ours in float32."""
    pair = PAIRS[name]()
    pair.ours.bfloat16()
    copy_weights(pair)
    exact = their_results(pair, torch.float32)
    ours = our_results(pair, torch.bfloat16)
    pair.theirs.zero_grad()
    pair.theirs.bfloat16()
    theirs = their_results(pair, torch.bfloat16)
    for key in exact:
        assert error(ours[key], exact[key]) <= min(1e-2, 2 * error(theirs[key], exact[key])), key


@pytest.mark.parametrize("window", [None, WINDOW, 300])
def test_capped_flops_are_counted_over_several_tiles(window):
    config = AttentionConfig(**vars(OURS) | {"soft_cap": SOFT_CAP, "window": window, "gate": True})
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        started(Attention(config, WIDTH))(torch.randn(2, TOKENS, WIDTH))
    assert counter.get_total_flops() / (2 * TOKENS) == pytest.approx(config.cost(WIDTH, TOKENS, 4).flops)


@pytest.mark.parametrize("soft_cap", [0.0, -1.0])
def test_a_cap_that_leaves_no_scores_is_refused(soft_cap):
    with pytest.raises(ConfigError, match="must be above 0"):
        AttentionConfig(heads=HEADS, soft_cap=soft_cap).check("model.layers.a.mixer", WIDTH)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"kind": "linear", "factor": 0.5}, r"rope_scaling.factor \(0.5\) stretches the context and must be at least 1"),
        (
            {"kind": "linear", "factor": 2, "context": 8},
            r"context \(8\) is how many tokens .* linear does not; set it, or remove it",
        ),
        ({"kind": "yarn", "factor": 2}, r"context \(None\) is how many tokens .* which llama3 and yarn need"),
        ({"kind": "linear", "factor": 2, "fast": 3.0}, r"no effect with a.rope_scaling.kind \(linear\)"),
        ({"kind": "llama3", "factor": 2, "context": 8, "slow": 4.0}, r"slow \(4.0\) must be above 0 and below a.rope_scaling.fast"),
        ({"kind": "llama3", "factor": 2, "context": 8, "scale": 2.0}, r"scale \(2.0\) must be positive and is yarn's alone"),
    ],
)
def test_scaled_positions_that_make_no_sense(settings, sentence):
    with pytest.raises(ConfigError, match=sentence):
        AttentionConfig(heads=2, rope_scaling=RopeScaling(**settings)).check("a", 16)


def test_scaled_positions_without_positions_are_refused():
    with pytest.raises(ConfigError, match="no effect without positions"):
        AttentionConfig(heads=2, rope_theta=None, rope_scaling=RopeScaling("linear", 2.0)).check("a", 16)
