"""Runs the packages' own Triton kernels on CPU tensors, in Triton's interpreter, through the dispatcher.

fp32 and fp16 alone: bf16 is silently wrong there. `install` comes before the packages are imported.
"""

import builtins
import contextlib
import importlib
import os
import sys
import types
from collections.abc import Iterator
from unittest.mock import patch

import torch

SM_90 = (9, 0)
# C extensions that the packages import at their top and these tests never call
EXTENSIONS = ("selective_scan_cuda", "causal_conv1d_cuda", "flash_attn_2_cuda")


class Driver:
    """Answers what autotuning asks of a GPU's driver, and times nothing: the first configuration wins."""

    binary_ext = "cubin"
    device = types.SimpleNamespace(
        max_shared_mem=232448, multiprocessor_count=132, warpSize=32, max_num_regs=65536, sm_clock_rate=1, mem_clock_rate=1
    )
    utils = types.SimpleNamespace(get_device_properties=lambda index: vars(Driver.device) | {"mem_bus_width": 1})

    def get_benchmarker(self):
        return lambda function, quantiles=None, **rest: [0.0, 0.0, 0.0]

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self):
        return 0

    def get_current_stream(self, device=0):
        return 0

    def get_device_interface(self):
        return torch.cpu

    def get_active_torch_device(self):
        return torch.device("cpu")

    def get_empty_cache_for_benchmark(self):
        return torch.empty(1)

    def clear_cache(self, cache):
        pass


class Counter(int):
    """A loop's counter: a Python int in the interpreter, of which kernels ask `.to`."""

    def to(self, *_args, **_rest):
        return self


def _counting(name: str):
    def operator(a, b):
        result = getattr(int, name)(a, b)
        return Counter(result) if type(result) is int else result

    return operator


for _name in ("add", "sub", "mul", "floordiv", "mod", "radd", "rmul", "rsub"):
    setattr(Counter, f"__{_name}__", _counting(f"__{_name}__"))


def counting(*bounds) -> Iterator[Counter]:
    return map(Counter, builtins.range(*(int(b.handle.data.item()) if hasattr(b, "handle") else int(b) for b in bounds)))


def tanh(x):
    return 2 / (1 + importlib.import_module("triton.language").exp(-2 * x)) - 1


def install() -> None:
    """Once in a process, with TRITON_INTERPRET=1 in its environment from the start."""
    assert os.environ.get("TRITON_INTERPRET") == "1", "start with TRITON_INTERPRET=1, as `make test-kernels` does"
    for name in EXTENSIONS:
        sys.modules.setdefault(name, types.ModuleType(name))
    # fla looks for a device when it is imported, and takes the CPU; after that, one that answers stands in
    importlib.import_module("fla")
    from triton.runtime.driver import driver

    driver.set_active(Driver())
    torch.cuda.device = lambda index=None: contextlib.nullcontext()
    torch.cuda.get_device_properties = lambda *_: types.SimpleNamespace(
        multi_processor_count=4, name="interpreter", major=9, minor=0, total_memory=1 << 34
    )
    for module in ("fla.ops.common.chunk_h", "fla.ops.common.chunk_delta_h", "fla.ops.hgrn.chunk"):
        importlib.import_module(module).range = counting
    # a function of CUDA's library, which the interpreter has none of
    importlib.import_module("fla.modules.fused_cross_entropy.ops").tanh = tanh


@contextlib.contextmanager
def device(capability: tuple[int, int] = SM_90) -> Iterator[None]:
    """CPU tensors count as a GPU's of this capability, and have no compiled loops."""
    from llm.ops import dispatch, kernels

    with (
        patch.object(kernels, "capability", lambda x: capability),
        patch.object(dispatch, "loop", lambda family, x: None),
        patch.object(torch, "get_float32_matmul_precision", lambda: "high"),
    ):
        yield
