"""Calls of every family by every kernel, and how far they are from the definition, in outputs, states and every gradient."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from llm.docs import Docs, Stretch
from llm.ops import cross_entropy, dispatch, kernels, norm, rotary, swiglu
from llm.ops.attention import naive as attention
from llm.ops.conv import naive as conv
from llm.ops.linear import naive as linear
from llm.ops.memory import naive as memory
from llm.ops.memory.naive import Memory
from llm.ops.recurrent import naive as recurrent
from llm.ops.recurrent.cells import CELLS
from llm.ops.scan import naive as scan

B, H, TAPS = 2, 2, 4
EXACT_IN_MEMORY = ("log_keep", "log_momentum", "initial")


def ssd(q, k, v, step, rate, state, starts=None):
    return linear.linear(q, k, *linear.discretised(v, step, rate), state, starts)


def rms_norm(x, weight, starts=None, *, eps):
    y = x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
    return y if weight is None else y * weight


def head_norm(x, weight, bias, starts=None, *, eps):
    centred = x - x.mean(-1, keepdim=True)
    return rms_norm(centred, weight, eps=eps) + (0 if bias is None else bias)


def rotate(x, position, starts=None, *, theta, channels=None):
    """Each pair of channels as a complex number."""
    half = (channels or x.shape[-1]) // 2
    angle = position[..., None, None] * theta ** -(torch.arange(half, dtype=torch.float64) / half)
    turned = torch.complex(x[..., :half], x[..., half : 2 * half]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([turned.real, turned.imag, x[..., 2 * half :]], -1)


def loss(hidden, weight, labels, starts=None, *, z_loss=0.0, cap=None):
    logits = hidden @ weight.T
    logits = logits if cap is None else cap * (logits / cap).tanh()
    squares = (logits.logsumexp(-1).square() * (labels != cross_entropy.IGNORED)).sum()
    nats = torch.nn.functional.cross_entropy(logits, labels, ignore_index=cross_entropy.IGNORED, reduction="sum")
    return nats + z_loss * (squares - squares.detach()), squares


# ops of each token alone
TOKENWISE: dict[str, Callable[..., Any]] = {
    "cross_entropy": cross_entropy.cross_entropy,
    "head norm": norm.head_norm,
    "norm": norm.rms_norm,
    "rotary": rotary.rotary,
    "swiglu": swiglu.swiglu,
}
DEFINITIONS: dict[str, Callable[..., Any]] = {
    "attention": attention.attention,
    "conv": conv.conv,
    "cross_entropy": loss,
    "elementwise": scan.elementwise,
    "head norm": head_norm,
    "linear": linear.linear,
    "memory": memory.memory,
    "mlstm": linear.mlstm,
    "norm": rms_norm,
    "recurrent": recurrent.recurrent,
    "rotary": rotate,
    "scan": scan.scan,
    "ssd": ssd,
    "swiglu": lambda gate, x, starts=None: gate * gate.sigmoid() * x,
}


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def decays(*shape: int) -> Tensor:
    return -torch.rand(*shape, dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """streams: makes `{name: tensor, or a tuple of them}` for so many tokens. exact: those that stay in float32.

    gradient, state_gradient: False where the kernel has none, or none of the state that leaves. tokens: of a row.
    """

    name: str
    family: str
    route: str
    streams: Callable[[int], dict[str, Any]]
    settings: dict[str, Any] = field(default_factory=dict)
    exact: Sequence[str] = ("log_decay", "step", "rate", "state", "log_input", "log_forget", "A", "dt", *EXACT_IN_MEMORY)
    tokens: int = 70
    documents: bool = True
    gradient: bool = True
    state_gradient: bool = True

    @property
    def setting(self) -> str:
        return kernels.SETTING.get(self.family, self.family)

    def starts(self) -> Tensor:
        """Documents of 1 token and of more than a chunk; one row goes on with its state, the other does not."""
        at = torch.zeros(B, self.tokens, dtype=torch.bool)
        for row, places in enumerate(([0, 1, 3], [2, 66])):
            at[row, [t for t in places if t < self.tokens]] = True
        return at


def qkv(T: int, K: int, V: int, groups: int = H) -> dict[str, Tensor]:
    return {"q": normal(B, T, groups, K), "k": normal(B, T, groups, K) / K**0.5, "v": normal(B, T, H, V)}


def linear_streams(decay: str, K: int = 16, V: int = 16) -> Callable[[int], dict[str, Any]]:
    def made(T: int) -> dict[str, Any]:
        shape = {"fixed": (H,), "per head": (B, T, H), "per channel": (B, T, H, K)}[decay]
        return qkv(T, K, V) | {"log_decay": decays(*shape) / 2, "state": normal(B, H, K, V)}

    return made


def ssd_streams(T: int, K: int = 16, V: int = 16) -> dict[str, Any]:
    steps = {"step": -decays(B, T, H), "rate": 2 * decays(H), "state": normal(B, H, K, V)}
    return qkv(T, K, V, groups=1) | steps


def mlstm_streams(T: int, K: int = 16, V: int = 16) -> dict[str, Any]:
    gates = {"log_input": 2 * normal(B, T, H), "log_forget": torch.nn.functional.logsigmoid(normal(B, T, H) + 2)}
    return qkv(T, K, V) | gates | {"state": (normal(B, H, K, V), normal(B, H, K), normal(B, H))}


def scan_streams(T: int, D: int = 8, N: int = 4) -> dict[str, Any]:
    streams = {"u": normal(B, T, D), "dt": -decays(B, T, D), "A": -torch.arange(1, N + 1).double().expand(D, N).clone()}
    return streams | {"B": normal(B, T, 2, N), "C": normal(B, T, 2, N), "state": normal(B, D, N)}


def elementwise_streams(T: int) -> dict[str, Any]:
    return {"x": normal(B, T, 16), "decay": 0.05 - 0.9 * decays(B, T, 16), "state": normal(B, 16)}


def memory_streams(T: int, K: int = 16, V: int = 16, chunk: int = 16) -> dict[str, Any]:
    """Of a memory of one matrix: steps that a chunk's sum does not make unstable."""
    streams = qkv(T, K, V)
    gates = {"log_keep": decays(B, T, H) / 8, "log_momentum": decays(B, T, H), "step": -decays(B, T, H) / chunk}
    matrices = [(normal(B, H, K, V) / K**0.5,) for _ in Memory._fields]
    return streams | gates | {"initial": (normal(H, K, V) / K**0.5,), "state": Memory(*matrices)}


def conv_streams(T: int, D: int = 16) -> dict[str, Any]:
    return {"x": normal(B, T, D), "weight": normal(D, TAPS), "bias": normal(D), "tail": normal(B, TAPS - 1, D)}


def recurrent_streams(cell: str) -> Callable[[int], dict[str, Any]]:
    def made(T: int, V: int = 16) -> dict[str, Any]:
        M = CELLS[cell].gates
        state = [0.5 * normal(B, H, V) for _ in CELLS[cell].states]
        if cell == "slstm":
            # as every step leaves it
            state[2] = 1 + state[2].abs()
        return {"x": normal(B, T, H, M, V), "R": normal(H, M, V, V) / V**0.5, "bias": normal(H, M, V), "state": tuple(state)}

    return made


def attention_streams(past: int) -> Callable[[int], dict[str, Any]]:
    def made(T: int, K: int = 16) -> dict[str, Any]:
        valid = torch.arange(past) >= torch.tensor([[0], [past // 2]])
        return {"q": normal(B, T, 2 * H, K), "k": normal(B, past + T, H, K), "v": normal(B, past + T, H, K), "valid": valid}

    return made


def norm_streams(width: int, weight: bool = True) -> Callable[[int], dict[str, Any]]:
    return lambda T: {"x": normal(B, T, width), "weight": 1 + 0.1 * normal(width) if weight else None}


def head_norm_streams(bias: bool, V: int = 16) -> Callable[[int], dict[str, Any]]:
    return lambda T: {"x": 1 + normal(B, T, H, V), "weight": 1 + 0.1 * normal(H, V), "bias": normal(H, V) if bias else None}


def rotary_streams(K: int, rows: int = B) -> Callable[[int], dict[str, Any]]:
    """Positions as they are behind a state and in documents, or the same in every row."""
    return lambda T: {"x": normal(B, T, H, K), "position": torch.randint(3000, (rows, T))}


def swiglu_streams(T: int, width: int = 40) -> dict[str, Any]:
    """The gate is a part of a wider projection, as some mixers have it."""
    return {"gate": normal(B, T, 2 * width)[..., width:], "x": normal(B, T, width)}


def loss_streams(Z: int, D: int = 16) -> Callable[[int], dict[str, Any]]:
    def made(T: int) -> dict[str, Any]:
        labels = torch.where(torch.rand(B * T) < 0.2, cross_entropy.IGNORED, torch.randint(Z, (B * T,)))
        return {"hidden": normal(B * T, D), "weight": normal(Z, D) / D**0.5, "labels": labels}

    return made


def stretch(case: Case, starts: Tensor | None, fresh: bool = False, behind: int = 5, tokens: int | None = None) -> Stretch:
    """behind: tokens of the document that rows go on with."""
    docs = None if starts is None else Docs(starts)
    return Stretch(docs, torch.full((B,), behind), 0, tokens or case.tokens, fresh)


def leaves_of(streams: dict[str, Any]) -> dict[str, Tensor]:
    """Its tensors that have gradients, by name."""
    named = {}
    for name, value in streams.items():
        for n, tensor in enumerate(flat(value)):
            if tensor is not None and tensor.is_floating_point():
                named[f"{name}.{n}" if isinstance(value, tuple) else name] = tensor
    return named


def cast(case: Case, streams: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """Leaves: streams in `dtype`, states and decays in no less than float32."""
    exact = torch.float32 if dtype.itemsize < 4 else dtype

    def leaf(name: str, x: Tensor | None) -> Tensor | None:
        if x is None or not x.is_floating_point():
            return x
        return x.detach().to(exact if name in case.exact else dtype).requires_grad_(case.gradient)

    return {name: tree_map(partial(leaf, name), value) for name, value in streams.items()}


def flat(outputs: Any) -> list[Tensor]:
    return tree_flatten(outputs)[0]


def run(case: Case, streams: dict[str, Any], at: Stretch) -> list[Tensor]:
    """Through the dispatcher, by the case's kernel."""
    with kernels.using(**{case.setting: case.route}), torch.set_grad_enabled(case.gradient):
        if case.family in TOKENWISE:
            return flat(TOKENWISE[case.family](*streams.values(), **case.settings))
        return flat(dispatch.run(case.family, at.tokens, *streams.values(), at=at, **case.settings))


def define(case: Case, streams: dict[str, Any], starts: Tensor | None) -> list[Tensor]:
    with torch.set_grad_enabled(case.gradient):
        where = stretch(case, starts).phase_BT if case.family == "memory" else starts
        return flat(DEFINITIONS[case.family](*streams.values(), where, **case.settings))


def error(got: Tensor, want: Tensor) -> float:
    """Relative Frobenius norm of the difference."""
    got, want = got.detach().double(), want.detach().double()
    assert got.shape == want.shape
    return ((got - want).norm() / want.norm().clamp(min=1e-30)).item()


def gradients(outputs: list[Tensor], leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    weights = [torch.randn(y.shape, generator=generator, dtype=torch.float64, device="cpu").to(y.device) for y in outputs]
    return torch.autograd.grad(sum((y.double() * w).sum() for y, w in zip(outputs, weights, strict=True)), leaves)


def differences(case: Case, dtype: torch.dtype, documents: bool) -> tuple[dict[str, float], float]:
    """(relative errors by output and by gradient, seconds of the kernel) of the case's kernel and the definition in float64.

    Of narrow streams the definition sees the same rounded values.
    """
    torch.manual_seed(0)
    streams = case.streams(case.tokens)
    starts = case.starts() if documents else None
    low = cast(case, streams, dtype)
    exact = cast(replace(case, exact=()), {n: _rounded(x) for n, x in low.items()}, torch.float64)
    began = time.perf_counter()
    got = run(case, low, stretch(case, starts))
    used = None if case.state_gradient else 1
    got_gradients = gradients(got[:used], list(leaves_of(low).values())) if case.gradient else ()
    seconds = time.perf_counter() - began
    want = define(case, exact, starts)
    found = {f"output {n}" if n == 0 else f"state {n - 1}": error(a, b) for n, (a, b) in enumerate(zip(got, want, strict=True))}
    if case.gradient:
        want_gradients = gradients(want[:used], list(leaves_of(exact).values()))
        found |= {f"d{n}": error(a, b) for n, a, b in zip(leaves_of(exact), got_gradients, want_gradients, strict=True)}
    return found, seconds


def _rounded(x: Any) -> Any:
    values, spec = tree_flatten(x)
    return tree_unflatten([v if v is None else v.detach() for v in values], spec)
