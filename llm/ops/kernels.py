"""Which kernel of which package runs an op on a GPU: rows of what each can do, and one choice, said once.

A row (`Route`) stands beside the op it runs, in `llm/ops/*/kernel.py`, and says what its kernel can obey. A call that it cannot
obey is refused with the reason, and the next row is asked; where none is left the PyTorch form runs. What a user asked for by name
does not give way: it stops with that reason. Packages are optional and imported at first use.
"""

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib import metadata, util
from typing import Any, Literal

import torch
from torch import Tensor

from llm.errors import ConfigError

NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32", torch.float64: "fp64"}
HALF = (torch.bfloat16, torch.float16)
# which setting of `kernels` chooses for a family
SETTING = {"ssd": "linear", "elementwise": "scan", "context": "memory", "head norm": "norm"}


@dataclass(frozen=True)
class KernelsConfig:
    """What runs each family of ops on CUDA tensors.

    `auto`: the first kernel that is installed and can. `torch`: the PyTorch form. A package's name: its kernel, or an error.
    """

    attention: Literal["auto", "flash", "flex", "torch"] = "auto"
    linear: Literal["auto", "fla", "mamba_ssm", "torch"] = "auto"
    mlstm: Literal["auto", "fla", "mlstm_kernels", "torch"] = "auto"
    scan: Literal["auto", "mamba_ssm", "fla", "torch"] = "auto"
    memory: Literal["auto", "triton", "torch"] = "auto"
    recurrent: Literal["auto", "flashrnn", "torch"] = "auto"
    conv: Literal["auto", "causal_conv1d", "fla", "torch"] = "auto"
    norm: Literal["auto", "fla", "torch"] = "auto"
    rotary: Literal["auto", "flash", "torch"] = "auto"
    swiglu: Literal["auto", "fla", "torch"] = "auto"
    cross_entropy: Literal["auto", "fla", "torch"] = "auto"


@dataclass(frozen=True)
class Facts:
    """What is known of a call before it runs.

    tokens: T. sizes: by letter (K, V, ...). documents: whether one starts behind a row's first token. carried: whether tokens lie
    behind the incoming state. handed_on: whether the sequence goes on on other ranks. gradient: whether one is asked for. mixed:
    whether a stream is narrower than float32. extent: the largest offset into a tensor. special: what a family adds.
    """

    dtype: torch.dtype
    capability: tuple[int, int]
    tokens: int = 0
    sizes: Mapping[str, int] = field(default_factory=dict)
    documents: bool = False
    carried: bool = False
    handed_on: bool = False
    gradient: bool = True
    mixed: bool = False
    extent: int = 0
    special: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        sizes = (f"{letter}={size}" for letter, size in self.sizes.items())
        return ", ".join([f"CUDA {'.'.join(map(str, self.capability))}", NAMES.get(self.dtype, str(self.dtype)), *sizes])


@dataclass(frozen=True, eq=False)
class Route:
    """A kernel behind a family's op, and what it can do.

    name: in `kernels.*`. package: as pip knows it. entry: "module:function". extra: of braid-lm, that installs it; "": PyTorch
    brings it. run: the op, with the definition's arguments; instead of starts it takes `at`, an `llm.docs.Stretch`, None where each
    token is alone. widths: (least, most, multiple of).
    documents, initial_state, gradient: whether it can start documents inside a row, go on from a state, be differentiated.
    state_gradient: of the final state. int32: whether its offsets are 32 bits wide. exact_float32: whether float32 is not
    multiplied in TF32. more: what else it refuses, in words. declines: why `auto` passes it over, though it could.
    """

    name: str
    package: str
    entry: str
    extra: str
    run: Callable[..., Any]
    dtypes: Sequence[torch.dtype] = HALF
    capability: tuple[int, int] = (8, 0)
    widths: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    documents: bool = True
    initial_state: bool = True
    gradient: bool = True
    state_gradient: bool = True
    int32: bool = False
    exact_float32: bool = False
    more: Callable[[Facts], str | None] | None = None
    declines: Callable[[Facts], str | None] | None = None

    @property
    def function(self) -> str:
        return self.entry.partition(":")[2]

    def refusal(self, facts: Facts) -> str | None:
        """Why it cannot run the call; None: it can."""
        if facts.capability < self.capability:
            return f"needs compute capability {'.'.join(map(str, self.capability))}, not {'.'.join(map(str, facts.capability))}"
        if facts.dtype not in self.dtypes:
            return f"computes in {', '.join(NAMES[d] for d in self.dtypes)}, not in {NAMES.get(facts.dtype, facts.dtype)}"
        if (
            facts.dtype == torch.float32
            and not (facts.mixed or self.exact_float32)
            and torch.get_float32_matmul_precision() == "highest"
        ):
            return "multiplies float32 in TF32, which torch.set_float32_matmul_precision('high') would allow"
        for letter, (least, most, multiple) in self.widths.items():
            size = facts.sizes.get(letter, least)
            if not least <= size <= most or size % multiple:
                steps = f" in multiples of {multiple}" * (multiple > 1)
                return f"takes {letter} from {least} to {most}{steps}, not {letter}={size}"
        if facts.documents and not self.documents:
            return "cannot start a document inside a row"
        if facts.carried and not self.initial_state:
            return "starts from no state, and tokens lie behind this one"
        if facts.gradient and not self.gradient:
            return "has no exact gradient"
        if facts.gradient and facts.handed_on and not self.state_gradient:
            return "has no gradient of the state that a split sequence hands on, which parallel.mode=heads does without"
        if self.int32 and facts.extent >= 1 << 31:
            return f"counts in 32 bits, and this call's tensors reach to element {facts.extent:,}"
        return self.more(facts) if self.more else None


Families = Mapping[str, Sequence[Route]]
_chosen = KernelsConfig()
Choices = list[tuple[str, Route | None, str]]
# (capability, choices made) of a device that is not there
_simulated: tuple[tuple[int, int], Choices] | None = None


def use(config: KernelsConfig) -> None:
    """From now on in this process."""
    global _chosen
    _chosen = config
    _said.clear()


@contextmanager
def using(**settings: Any) -> Iterator[None]:
    before = _chosen
    use(replace(before, **settings))
    try:
        yield
    finally:
        use(before)


@contextmanager
def simulated(capability: tuple[int, int], config: KernelsConfig) -> Iterator[Choices]:
    """Ops choose as on a device of this capability with every package installed, and run in PyTorch. What they chose, and why."""
    global _simulated
    choices: Choices = []
    _simulated = capability, choices
    try:
        with using(**asdict(config)):
            yield choices
    finally:
        _simulated = None


def capability(x: Tensor) -> tuple[int, int] | None:
    """Of the tensor's device; None where none of these kernels runs."""
    if _simulated is not None:
        return _simulated[0]
    return torch.cuda.get_device_capability(x.device) if x.is_cuda else None


def asked(family: str) -> str:
    return getattr(_chosen, SETTING.get(family, family), "torch")


def choose(family: str, routes: Sequence[Route], facts: Facts, asked: str) -> Route | None:
    """The route that is to run; None: the PyTorch form. Says which, and why, once. Raises ConfigError where `asked` cannot."""
    setting = SETTING.get(family, family)
    if asked == "torch":
        return _decided(family, None, f"{family}: PyTorch, because kernels.{setting}=torch")
    reasons: dict[str, None] = {}
    for route in routes:
        if asked not in ("auto", route.name):
            continue
        absent = None if _simulated else missing(route)
        if absent:
            reasons[f"{route.package} {absent}"] = None
            continue
        reason = route.refusal(facts) or (route.declines(facts) if route.declines and asked == "auto" else None)
        if reason is None:
            passed = f"; passed over: {'; '.join(reasons)}" if reasons else ""
            named = " ".join(word for word in (route.package, version(route.package), route.function) if word)
            return _decided(family, route, f"{family}: {named}, because {facts}{passed}")
        reasons[f"{route.package} {route.function} {reason}"] = None
    why = "; ".join(reasons) or "it has no kernel for this"
    if asked != "auto":
        raise ConfigError(f"kernels.{setting} ({asked}) cannot run {family} on {facts}: {why}; use kernels.{setting}=auto")
    return _decided(family, None, f"{family}: PyTorch on {facts}, because {why}")


def _decided(family: str, route: Route | None, sentence: str) -> Route | None:
    if _simulated is None:
        say(sentence)
        return route
    _simulated[1].append((family, route, sentence.partition("because ")[2]))
    return None


_said: set[str] = set()


def say(sentence: str) -> None:
    """Once, and on the first rank alone."""
    if sentence not in _said:
        _said.add(sentence)
        if os.environ.get("RANK", "0") == "0":
            print(sentence, file=sys.stderr, flush=True)


@cache
def version(package: str) -> str:
    """As installed; "" where it is not, or is no package of its own."""
    if package == "torch":
        return torch.__version__
    for name in (package, {"flash-linear-attention": "fla-core"}.get(package, package)):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return ""


@cache
def missing(route: Route) -> str | None:
    """Why the kernel cannot be had in this environment, and what to do; None: it can."""
    module = route.entry.partition(":")[0]
    install = f"pip install 'braid-lm[{route.extra}]' installs it, docs/install.md says how"
    if not route.extra:
        install = "PyTorch's CUDA builds bring it"
    if module.partition(".")[0] not in sys.modules and util.find_spec(module.partition(".")[0]) is None:
        return f"is not installed: {install}"
    try:
        entry(route.entry)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and "cuda" not in error.name:
            return f"needs the package {error.name.partition('.')[0]}, which is not installed: {install}"
        abi = f"torch {torch.__version__}, CUDA {torch.version.cuda}, C++11 ABI {torch.compiled_with_cxx11_abi()}"
        return (
            f"cannot be imported ({_first_line(error)}); it must be built for {abi}: "
            f"pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps {route.package}"
        )
    return None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@cache
def entry(name: str) -> Callable[..., Any]:
    """The function at "module:function"."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def check(config: KernelsConfig, families: Families, device: torch.device) -> None:
    """Raises ConfigError where a kernel that was asked for by name cannot be had, before anything starts."""
    for setting, name in asdict(config).items():
        if name in ("auto", "torch"):
            continue
        if device.type != "cuda":
            raise ConfigError(f"kernels.{setting} ({name}) runs on CUDA devices, and this run is on {device.type}; remove it")
        routes = [r for family, rows in families.items() for r in rows if SETTING.get(family, family) == setting and r.name == name]
        reason = next((reason for route in routes if (reason := missing(route))), None)
        if reason:
            raise ConfigError(f"kernels.{setting} ({name}) {reason}; or use kernels.{setting}=auto")


class _NoGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, why: str) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.why = why
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dx: Tensor | None) -> Any:
        if dx is not None:
            raise ConfigError(ctx.why)
        return None, None


def no_gradient(x: Tensor, setting: str, name: str, what: str) -> Tensor:
    """x, which stops the backward pass where a gradient comes to it that the kernel does not have."""
    law = f"kernels.{setting} ({name}) has no gradient of {what}, which this loss asks for; use kernels.{setting}=torch"
    return _NoGradient.apply(x, law)


def extent(*tensors: Tensor) -> int:
    """The largest offset into any of them, in elements."""
    return max(sum((n - 1) * abs(s) for n, s in zip(x.shape, x.stride(), strict=True)) for x in tensors)
