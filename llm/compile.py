"""Blocks through `torch.compile`: what lies between the ops over time becomes a few fused kernels. Off unless asked for.

Ops over time keep the kernel or loop that they have without it: a compiled block calls them as they are. So a layer is about four
graphs (norm; projections; what follows the op; channel layer), which layers of one kind share.
"""

import os
import shlex
import shutil
from importlib import util
from typing import cast

import torch

from llm.block import Block
from llm.errors import ConfigError
from llm.model import Decoder
from llm.sequence import Seq

# Graphs of one function: for each kind of layer, with and without gradients, documents and a state. Past that PyTorch runs it
# uncompiled.
GRAPHS = 64
OPS = ("attention", "context", "conv", "elementwise", "linear", "memory", "mlstm", "recurrent", "scan")


class Opaque(Seq):
    """A `Seq` into whose ops `torch.compile` does not look, nor into how it reads documents, which keep what is read of them."""


for _name in ("__init__", *OPS):
    setattr(Opaque, _name, torch.compiler.disable(getattr(Seq, _name), reason="an op over time runs by its kernel or loop"))


def compile_blocks(decoder: Decoder) -> None:
    """From its next call on. Parameters, their names and checkpoints stay as they are."""
    raise_limit()
    for block in decoder.blocks:
        cast(Block, block).mixer.window_on_time = Opaque
        block.compile(dynamic=False)


def raise_limit() -> None:
    torch._dynamo.config.recompile_limit = max(GRAPHS, torch._dynamo.config.recompile_limit)


def check_compiler(setting: str, device: torch.device) -> None:
    """Raises ConfigError where `torch.compile` could make nothing for the device."""
    if device.type == "cuda":
        if util.find_spec("triton") is None:
            raise ConfigError(f"{setting} makes Triton kernels, and triton is not installed: pip install triton, or remove it")
    elif shutil.which((shlex.split(os.environ.get("CXX", "")) or ["g++"])[0]) is None:
        raise ConfigError(f"{setting} needs a C++ compiler, which is not on PATH; install g++, or name one in CXX")
