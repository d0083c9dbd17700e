"""Stands in for packages' kernels: binds each call to the package's own signature, holds it to the package's laws, runs nothing.

The laws are those that the packages' C++ and Python check before a launch, or take for granted in their pointer arithmetic.
"""

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from llm.ops import kernels
from llm.ops.attention.kernel import BLOCK_MASK, FLASH, FLEX, VARLEN
from llm.ops.conv.kernel import CAUSAL_CONV1D
from llm.ops.conv.kernel import FLA as FLA_CONV
from llm.ops.kernels import HALF
from llm.ops.linear.kernel import CHUNK_SCAN, GLA, SIMPLE_GLA
from llm.ops.memory.kernel import HANDED_ON
from llm.ops.recurrent.kernel import DTYPES, FLASHRNN
from llm.ops.scan.kernel import SELECTIVE_SCAN
from llm.ops.tokenwise.kernel import GROUP_NORM, LOSS, LOSS_GRADIENT, RMS_NORM, ROTARY, SWIGLU
from tests.paper.gpu import DEVICE


class Opaque(torch.autograd.Function):
    """Outputs like the first `made` tensors, which depend on all others; gradients are contiguous, as kernels make them."""

    @staticmethod
    def forward(ctx: Any, made: Sequence[Tensor], *inputs: Tensor) -> Any:
        ctx.inputs = [(x.shape, x.dtype, x.is_floating_point()) for x in inputs]
        return tuple(x.clone() for x in made)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return None, *(
            torch.empty(shape, dtype=dtype, device=DEVICE) if is_float else None for shape, dtype, is_float in ctx.inputs
        )


def law(holds: bool, sentence: str) -> None:
    assert holds, sentence


def like(x: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty(shape or x.shape, dtype=dtype or x.dtype, device=x.device)


def segments(cuts: Tensor, name: str) -> None:
    law(cuts.dtype == torch.int32, f"{name} is {cuts.dtype}, not int32")
    law(cuts.ndim == 1 and cuts.is_contiguous(), f"{name} is not one contiguous row")


def flash(a: dict[str, Any]) -> Sequence[Tensor]:
    """csrc/flash_attn/flash_api.cpp, `mha_varlen_fwd`; maybe_contiguous in flash_attn_interface.py."""
    q, k, v = a["q"], a["k"], a["v"]
    law(q.dtype in HALF and q.dtype == k.dtype == v.dtype, f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}")
    law(all(x.stride(-1) == 1 for x in (q, k, v)), "a head's channels are not beside each other")
    law(q.shape[-1] == k.shape[-1] == v.shape[-1] <= 256 and q.shape[-1] % 8 == 0, f"head of {q.shape[-1]}")
    law(q.shape[-2] % k.shape[-2] == 0, "query heads are no multiple of key heads")
    law(a["causal"] is True and a["softmax_scale"] is not None and a["dropout_p"] == 0, "not causal, or without a scale")
    if "cu_seqlens_q" in a:
        law(q.ndim == k.ndim == 3, "segments are of flat tokens")
        for name in ("cu_seqlens_q", "cu_seqlens_k"):
            segments(a[name], name)
        law(a["cu_seqlens_q"].shape == a["cu_seqlens_k"].shape, "segments of queries and of keys differ in number")
        law(type(a["max_seqlen_q"]) is int and type(a["max_seqlen_k"]) is int, "max_seqlen is no number of Python")
    return [like(q)]


def gla(a: dict[str, Any]) -> Sequence[Tensor]:
    """fla/ops/simple_gla/chunk.py, fla/ops/gla/chunk.py: under cu_seqlens one row, and a state for each segment."""
    q, k, v, state = a["q"], a["k"], a["v"], a["initial_state"]
    law(q.dtype == k.dtype == v.dtype, f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}")
    law(all(x.is_contiguous() for x in (q, k, v)), "a stream is not contiguous")
    law(q.shape == k.shape and q.shape[:3] == v.shape[:3], "q, k, v of different heads")
    decay = a["g"] if a.get("g_gamma") is None else a["g_gamma"]
    law(decay is not None and decay.dtype == torch.float32, "decays are not float32")
    law(state.dtype == torch.float32 and state.is_contiguous(), "the state is not contiguous float32")
    rows = q.shape[0]
    if a["cu_seqlens"] is not None:
        segments(a["cu_seqlens"], "cu_seqlens")
        law(a["cu_seqlens_cpu"] is not None and a["cu_seqlens_cpu"].device.type == "cpu", "cu_seqlens_cpu is not in host memory")
        law(rows == 1, "segments are of one row")
        rows = len(a["cu_seqlens"]) - 1
    law(state.shape == (rows, q.shape[2], q.shape[3], v.shape[3]), f"state {tuple(state.shape)}")
    law(a["output_final_state"] is True and isinstance(a["scale"], float), "no final state, or no scale")
    return [like(v), like(state)]


def chunk_scan(a: dict[str, Any]) -> Sequence[Tensor]:
    """mamba_ssm/ops/triton/ssd_combined.py, `_mamba_chunk_scan_combined_fwd`."""
    x, dt, A, B, C, state = (a[name] for name in ("x", "dt", "A", "B", "C", "initial_states"))
    (batch, tokens, heads, width), (groups, states) = x.shape, B.shape[2:]
    law(heads % groups == 0 and B.shape == C.shape == (batch, tokens, groups, states), "groups of B and C")
    law(dt.shape == (batch, tokens, heads) and A.shape == (heads,), "dt and A")
    law(A.dtype == dt.dtype == torch.float32, "decays are not float32")
    law(all(s.stride(-1) == 1 for s in (x, B, C)), "channels are not beside each other")
    law(state.shape == (batch, heads, width, states) and state.dtype == torch.float32, "the state")
    return [like(x), like(state)]


def causal_conv1d(a: dict[str, Any]) -> Sequence[Tensor]:
    """csrc/causal_conv1d.cpp, `causal_conv1d_fwd`: document numbers go with channels beside each other, in steps of 8."""
    x, weight, bias, ids = a["x"], a["weight"], a["bias"], a["seq_idx"]
    law(x.dtype in (*HALF, torch.float32), f"x is {x.dtype}")
    law(weight.shape[0] == x.shape[1] and 2 <= weight.shape[1] <= 4, "weight")
    law(bias is None or (bias.shape == x.shape[1:2] and bias.stride(-1) == 1 and bias.dtype == weight.dtype), "bias")
    if x.stride(2) != 1:
        law(x.stride(1) == 1 and x.shape[1] % 8 == x.stride(0) % 8 == x.stride(2) % 8 == 0, "channels last, in steps of 8")
    if ids is not None:
        law(x.stride(1) == 1, "document numbers need channels beside each other")
        law(ids.dtype == torch.int32 and ids.is_contiguous() and ids.shape == (x.shape[0], x.shape[2]), "seq_idx")
    return [torch.empty_like(x)]


def fla_conv(a: dict[str, Any]) -> Sequence[Tensor]:
    if a["cu_seqlens"] is not None:
        segments(a["cu_seqlens"], "cu_seqlens")
        law(len(a["x"]) == 1, "segments are of one row")
    law(a["weight"].shape[0] == a["x"].shape[2], "weight")
    return [like(a["x"])]


def selective_scan(a: dict[str, Any]) -> Sequence[Tensor]:
    """csrc/selective_scan/selective_scan.cpp, `selective_scan_fwd`."""
    u, dt, A, B, C = (a[name] for name in ("u", "delta", "A", "B", "C"))
    law(u.dtype == dt.dtype == B.dtype == C.dtype and A.dtype == torch.float32, "dtypes")
    law(all(x.stride(-1) == 1 for x in (u, dt, B, C)), "tokens are not beside each other")
    law(u.shape == dt.shape and A.shape == (u.shape[1], B.shape[2]) and A.shape[1] <= 256, "A")
    law(B.shape == C.shape == (u.shape[0], B.shape[1], A.shape[1], u.shape[2]) and u.shape[1] % B.shape[1] == 0, "B and C")
    return [like(u)]


def flashrnn(a: dict[str, Any]) -> Sequence[Tensor]:
    """flashrnn/flashrnn/flashrnn.py, `flashrnn`."""
    x, R, bias, states = a["Wx"], a["R"], a["b"], a["states"]
    batch, tokens, gates, heads, V = x.shape
    law({x.dtype, R.dtype, bias.dtype, states.dtype} == {x.dtype}, "dtypes differ")
    law(DTYPES[x.dtype] == a["dtype"], f"told of {a['dtype']}")
    law(R.shape == (gates, heads, V, V) and bias.shape == (gates, heads, V), "R or bias")
    law(states.shape[1:] == (batch, 1, heads, V), f"states {tuple(states.shape)}")
    return [like(x, len(states), batch, tokens, heads, V), like(states)]


def flex(a: dict[str, Any]) -> Sequence[Tensor]:
    q, k, v = a["query"], a["key"], a["value"]
    law(q.dtype == k.dtype == v.dtype and q.shape[-1] == k.shape[-1], "q, k, v")
    law(a["enable_gqa"] or q.shape[1] == k.shape[1], "grouped heads")
    return [like(q, *q.shape[:-1], v.shape[-1])]


def block_mask(a: dict[str, Any]) -> Sequence[Tensor]:
    """What the mask asks of tensors is asked here of all pairs at once."""
    law(torch.device(a["device"]).type == DEVICE, "the mask is not on the device")
    b, q, k = (torch.arange(a[size], device=DEVICE) for size in ("B", "Q_LEN", "KV_LEN"))
    seen = a["mask_mod"](b[:, None, None], None, q[:, None], k)
    law(seen.dtype == torch.bool, "the mask")
    return [like(seen, 1)]


def memory(a: dict[str, Any]) -> Sequence[Tensor]:
    """llm/ops/memory/kernel_triton.py: pointers go by shapes, so everything is contiguous."""
    (N, B, H, C, K), V = a["k"].shape, a["v"].shape[-1]
    law(all(x.is_contiguous() for x in a.values()), "a stream is not contiguous")
    law({x.dtype for name, x in a.items() if name != "opening"} == {torch.float32}, "all are float32")
    law(a["opening"].dtype == torch.int32 and a["opening"].shape == (N, B), "opening")
    law(a["v"].shape[:4] == a["step"].shape == a["to_weights"].shape == a["to_momentum"].shape == (N, B, H, C), "of tokens")
    law(all(a[name].shape == (N, B, H) for name in ("keeps", "enters", "fades")), "of chunks")
    matrices = [a[name] for name in ("initial", "start", "weights", "momentum")]
    law(all(x.shape == (B, H, K, V) for x in matrices), "matrices")
    before = [like(a["start"], N, B, H, K, V) for _ in range(2)]
    return [*before, like(a["v"]), *(like(a["start"]) for _ in range(3))]


def norm(a: dict[str, Any]) -> Sequence[Tensor]:
    """fla/modules/norm/layernorm.py, `layer_norm_fwd`: rows of at most 64 KiB; weights of all groups in one row."""
    x, weight, bias = a["x"], a["weight"], a["bias"]
    law(weight is None or weight.shape == x.shape[-1:], f"weight {None if weight is None else tuple(weight.shape)}")
    law(bias is None or bias.shape == x.shape[-1:], "bias")
    law(x.shape[-1] % a.get("num_groups", 1) == 0 and x.shape[-1] // a.get("num_groups", 1) * x.itemsize <= 65536, "width")
    law(a["residual"] is None and a["prenorm"] is False and isinstance(a["eps"], float), "residual, or no eps")
    return [torch.empty_like(x, memory_format=torch.contiguous_format)]


def swiglu(a: dict[str, Any]) -> Sequence[Tensor]:
    """fla/modules/activations/ops.py, `swiglu_fwd`: strided rows are read as they are."""
    gate, x = a["args"]
    law(gate.shape == x.shape and gate.dtype == x.dtype, f"{tuple(gate.shape)} {gate.dtype}, {tuple(x.shape)} {x.dtype}")
    return [torch.empty_like(gate, memory_format=torch.contiguous_format)]


def loss(a: dict[str, Any]) -> Sequence[Tensor]:
    """fla/modules/fused_cross_entropy/ops.py, `cross_entropy_fwd`."""
    logits, target = a["logits"], a["target"]
    law(logits.ndim == 2 and logits.stride(-1) == 1 and target.shape == logits.shape[:1], "logits")
    law(target.dtype == torch.int64 and a["label_smoothing"] == a["lse_square_scale"] == 0, "labels, or a sum with z-loss")
    return [like(logits, len(logits), dtype=torch.float32) for _ in range(3)]


def loss_gradient(a: dict[str, Any]) -> Sequence[Tensor]:
    """`cross_entropy_bwd` there."""
    logits, lse, dloss = a["logits"], a["lse"], a["dloss"]
    law(logits.stride(-1) == 1 and a["inplace_backward"] is True, "logits")
    law(lse.shape == dloss.shape == logits.shape[:1] and lse.dtype == dloss.dtype == torch.float32, "log-sums")
    return [like(logits)]


def rotary(a: dict[str, Any]) -> Sequence[Tensor]:
    """flash_attn/ops/triton/rotary.py, `apply_rotary`: a line of the table for each token."""
    x, cos, sin = a["x"], a["cos"], a["sin"]
    law(cos.shape == sin.shape and cos.dtype == sin.dtype == torch.float32 and cos.is_contiguous(), "table")
    law(x.ndim == 4 and x.shape[:2] == (1, len(cos)) and 2 * cos.shape[1] <= x.shape[3] <= 256, "x")
    law((a["interleaved"], a["inplace"], a["seqlen_offsets"], a["cu_seqlens"]) == (False, False, 0, None), "settings")
    return [torch.empty_like(x)]


LAWS: dict[str, Callable[[dict[str, Any]], Sequence[Tensor]]] = {
    FLASH: flash,
    VARLEN: flash,
    SIMPLE_GLA: gla,
    GLA: gla,
    CHUNK_SCAN: chunk_scan,
    CAUSAL_CONV1D: causal_conv1d,
    FLA_CONV: fla_conv,
    SELECTIVE_SCAN: selective_scan,
    FLASHRNN: flashrnn,
    HANDED_ON: memory,
    FLEX: flex,
    BLOCK_MASK: block_mask,
    RMS_NORM: norm,
    GROUP_NORM: norm,
    SWIGLU: swiglu,
    LOSS: loss,
    LOSS_GRADIENT: loss_gradient,
    ROTARY: rotary,
}
# these return one tensor, and this one y and a state that is not asked for
ALONE = (FLASH, VARLEN, CAUSAL_CONV1D, SELECTIVE_SCAN, FLEX, BLOCK_MASK, RMS_NORM, GROUP_NORM, SWIGLU, LOSS_GRADIENT, ROTARY)


def recorder(name: str, seen: dict[str, int]) -> Callable[..., Any]:
    signature = inspect.signature(kernels.entry(name))

    def call(*args: Any, **settings: Any) -> Any:
        bound = signature.bind(*args, **settings)
        bound.apply_defaults()
        law(not bound.arguments.get("kwargs"), f"{name} has no arguments {bound.arguments.get('kwargs')}")
        tensors = [x for x in tree_leaves((args, settings)) if isinstance(x, Tensor)]
        on_host = {n for n, x in bound.arguments.items() if isinstance(x, Tensor) and x.device.type != DEVICE}
        law(on_host <= {"cu_seqlens_cpu"}, f"{on_host} are in host memory")
        seen[name] = seen.get(name, 0) + 1
        outputs = Opaque.apply(LAWS[name](bound.arguments), *(x for x in tensors if x.device.type == DEVICE))
        return outputs[0] if name in ALONE else (outputs[0], None) if name == FLA_CONV else outputs

    return call


@contextlib.contextmanager
def recorded() -> Iterator[dict[str, int]]:
    """Calls of kernels by entry: how many. As on an H100 with all packages, and without compiled loops."""
    from tests.kernels.interpreter import device

    seen: dict[str, int] = {}
    recorders = {name: recorder(name, seen) for name in LAWS}
    with (
        device(),
        patch.object(kernels, "missing", lambda route: None),
        patch.object(kernels, "entry", lambda name: recorders[name]),
    ):
        yield seen
