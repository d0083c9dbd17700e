"""`python launch/describe.py --kernels [sm_90] [FILE.yaml... key.path=value...]`: what each kernel can, and which runs each op.

Without `sm_NN` the device is this machine's. With it, it is one of that compute capability where every package is installed. A
config adds what its layers would run in bf16, over packed documents, found on tensors without values.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from rich.console import Console
from rich.table import Table
from torch._subclasses.fake_tensor import FakeTensorMode

from llm.block import Block, LayerConfig
from llm.docs import Docs
from llm.errors import ConfigError
from llm.model import ModelConfig
from llm.ops import kernels
from llm.ops.cross_entropy import cross_entropy
from llm.ops.kernels import Facts, Route
from llm.ops.routes import ROUTES
from llm.sequence import Seq
from llm.train.config import RunConfig, load_config

YES_NO = {True: "yes", False: "no"}


def show(words: Sequence[str]) -> None:
    """Raises ConfigError."""
    simulated = [word for word in words if word.startswith("sm_")]
    rest = [word for word in words if not word.startswith("sm_")]
    capability = _capability(simulated[-1]) if simulated else _here()
    console = Console(width=None if sys.stdout.isatty() else 200)
    console.print(table(capability, bool(simulated)))
    if rest:
        config = load_config(rest)
        config.model.check("model")
        if capability is None:
            raise ConfigError(f"--kernels {rest[0]}: this machine has no CUDA device; name one to simulate, as in --kernels sm_90")
        console.print(chosen(config, capability))


def _capability(word: str) -> tuple[int, int]:
    digits = word.removeprefix("sm_").rstrip("a")
    if not digits.isdigit() or len(digits) < 2:
        raise ConfigError(f"--kernels {word}: a compute capability is written sm_80, sm_90, sm_100; use one of these")
    return int(digits[:-1]), int(digits[-1])


def _here() -> tuple[int, int] | None:
    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None


def table(capability: tuple[int, int] | None, simulated: bool) -> Table:
    """A row per kernel, in the order in which `auto` asks."""
    device = "no CUDA device: compiled loops and PyTorch run" if capability is None else f"CUDA {capability[0]}.{capability[1]}"
    title = f"kernels by family, first come first asked; {device}{', simulated' * simulated}"
    shown = Table(title=title, title_justify="left")
    headings = ["family", "kernels.*", "kernel", "dtypes", "sizes", "documents", "state in", "gradient", "of the state out"]
    for heading in [*headings, "offsets", "here"]:
        shown.add_column(heading)
    for family, routes in ROUTES.items():
        for n, route in enumerate(routes):
            setting = f"{kernels.SETTING.get(family, family)}={route.name}"
            shown.add_row(family * (n == 0), setting, *_cells(route), _verdict(route, capability, simulated))
        shown.add_section()
    return shown


def _cells(route: Route) -> list[str]:
    sizes = (f"{letter} {least}-{most}" + f" by {by}" * (by > 1) for letter, (least, most, by) in route.widths.items())
    can = (route.documents, route.initial_state, route.gradient, route.gradient and route.state_gradient)
    dtypes = [kernels.NAMES[d] + " as TF32" * (d == torch.float32 and not route.exact_float32) for d in route.dtypes]
    kernel = f"{route.package} {route.function}"
    return [kernel, ", ".join(dtypes), ", ".join(sizes), *(YES_NO[c] for c in can), "32 bits" if route.int32 else "64 bits"]


def _verdict(route: Route, capability: tuple[int, int] | None, simulated: bool) -> str:
    if not simulated and (absent := kernels.missing(route)):
        return absent.partition(":")[0]
    version = kernels.version(route.package)
    if capability is None:
        return f"{version}, but no CUDA device"
    return route.refusal(Facts(route.dtypes[0], capability, gradient=route.gradient)) or version or "can"


def chosen(config: RunConfig, capability: tuple[int, int]) -> Table:
    """What each layer's ops run, where every package is installed."""
    tokens = config.data.sequence_length
    shown = Table(title=f"{config.name}: kernels in bf16 over packed documents of {tokens} tokens a row", title_justify="left")
    for heading in ("layer", "op", "kernel", "why"):
        shown.add_column(heading)
    docs = Docs.from_lengths([[tokens // 3, tokens - tokens // 3]])
    # known before values are not
    assert docs.cut
    for name, layer in config.model.layers.items():
        with kernels.simulated(capability, config.kernels) as calls, _without_values():
            _forward(layer, config.model, docs)
        _add(shown, f"{name} ({layer.mixer.kind})", calls)
    with kernels.simulated(capability, config.kernels) as calls, _without_values():
        _loss(config.model, docs)
    _add(shown, "head", calls)
    return shown


def _add(shown: Table, where: str, calls: kernels.Choices) -> None:
    for family, route, why in dict.fromkeys(calls):
        shown.add_row(where, family, f"{route.package} {route.function}" if route else "PyTorch", why)


@contextmanager
def _without_values() -> Iterator[None]:
    """Tensors inside have none, and are bf16 unless said."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        torch.set_default_dtype(before)


def _forward(layer: LayerConfig, model: ModelConfig, docs: Docs) -> None:
    block, x = Block(layer, model.width, model.norm_eps), torch.empty(*docs.shape, model.width)
    state = block.mixer.init_state(len(docs.starts_BT), "cpu", torch.bfloat16)
    mixed = block.mixer.mix(block.mixer_norm(x), Seq(state, True, docs, docs.shape[1]))
    block.channel(x + mixed)


def _loss(model: ModelConfig, docs: Docs) -> None:
    labels = torch.zeros(docs.starts_BT.numel(), dtype=torch.long)
    cross_entropy(torch.empty(len(labels), model.width), torch.empty(model.vocab_size, model.width), labels, cap=model.logit_cap)
