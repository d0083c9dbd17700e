"""The kernels of every family, in the order in which `auto` asks them, and what a process sets of them.

An exported model, one file of Python, has none.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from llm.config import build, merge, read
from llm.docs import Stretch
from llm.ops import kernels
from llm.ops.attention import kernel as attention
from llm.ops.conv import kernel as conv
from llm.ops.kernels import Facts, KernelsConfig, Route
from llm.ops.linear import kernel as linear
from llm.ops.memory import kernel as memory
from llm.ops.recurrent import kernel as recurrent
from llm.ops.scan import kernel as scan
from llm.ops.tokenwise import kernel as tokenwise

ROUTES: dict[str, tuple[Route, ...]] = {
    "attention": attention.ROUTES,
    "linear": linear.LINEAR,
    "ssd": linear.SSD,
    "mlstm": linear.MLSTM,
    "scan": scan.SCAN,
    "elementwise": scan.ELEMENTWISE,
    "memory": memory.ROUTES,
    "context": (),
    "recurrent": recurrent.ROUTES,
    "conv": conv.ROUTES,
    "norm": tokenwise.NORM,
    "head norm": tokenwise.HEAD_NORM,
    "rotary": tokenwise.ROTATION,
    "swiglu": tokenwise.SILU_GATE,
    "cross_entropy": tokenwise.CROSS_ENTROPY,
}
# What a family's call says of itself: sizes, extent, special.
FACTS: dict[str, Callable[..., dict[str, Any]]] = {
    "attention": attention.facts,
    "linear": linear.linear_facts,
    "ssd": linear.ssd_facts,
    "mlstm": linear.mlstm_facts,
    "scan": scan.scan_facts,
    "elementwise": scan.elementwise_facts,
    "memory": memory.facts,
    "context": memory.context_facts,
    "recurrent": recurrent.facts,
    "conv": conv.facts,
    "norm": tokenwise.norm_facts,
    "head norm": tokenwise.norm_facts,
    "rotary": tokenwise.rotary_facts,
    "swiglu": tokenwise.swiglu_facts,
    "cross_entropy": tokenwise.loss_facts,
}


def kernel_of(family: str, at: Stretch | None, x: Tensor, *streams: Any, **settings: Any) -> Callable[..., Any] | None:
    """The op by the kernel that is to run this call, if one is. Raises ConfigError where one was asked for by name and cannot.

    at: None for ops of each token alone. Inside `torch.compile` there is none: what is traced are PyTorch's forms.
    """
    capability = None if family not in ROUTES or torch.compiler.is_compiling() else kernels.capability(x)
    if capability is None:
        return None
    tensors = _tensors((x, *streams))
    known = Facts(
        x.dtype,
        capability,
        **({} if at is None else _of(at)),
        gradient=torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors),
        mixed=any(tensor.dtype in kernels.HALF for tensor in tensors),
        **FACTS[family](x, *streams, **settings),
    )
    route = kernels.choose(family, ROUTES[family], known, kernels.asked(family))
    return None if route is None else route.run


def _of(at: Stretch) -> dict[str, Any]:
    cut = at.documents is not None and at.documents.cut
    return {"tokens": at.tokens, "documents": cut, "carried": not at.fresh, "handed_on": at.part}


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    return [tensor for value in values for tensor in _tensors(value)] if isinstance(values, tuple | list) else []


@dataclass(frozen=True)
class Settings:
    """As they stand in a run's config, and on command lines."""

    kernels: KernelsConfig = field(default_factory=KernelsConfig)


def set_routes(config: KernelsConfig, device: torch.device) -> None:
    """What ops run from now on in this process. Raises ConfigError where a kernel that is asked for by name cannot be had."""
    kernels.check(config, ROUTES, device)
    kernels.use(config)


def set_routes_of_run(config: KernelsConfig, device: torch.device, words: Sequence[str] = ()) -> None:
    """The same for a model that was trained with `config`: what it says counts where kernels run, on CUDA devices, and `words`
    (kernels.FAMILY=NAME) come before it.
    """
    trained = asdict(Settings(config)) if device.type == "cuda" else {}
    set_routes(build(Settings, merge(trained, read(words)), {}).kernels, device)
