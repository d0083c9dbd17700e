"""Kernels of Triton compiled for a GPU that is not there, by the calls of the dispatcher: each launch is a cubin and a row.

`install` comes before the packages are imported: some choose by the device that they see then. A launch runs nothing, so outputs
are whatever memory held. Where a kernel is tuned, the first of its configurations that fits without spilling stands for it (on a
GPU the fastest would): what is shown is that there is one.
"""

import contextlib
import importlib
import re
import subprocess
import sys
import tempfile
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from tests.kernels.interpreter import EXTENSIONS, Driver

# bytes of shared memory that a block may ask for: CUDA's programming guide, "technical specifications per compute capability"
SHARED = {80: 163 << 10, 90: 227 << 10}
NAMES = {80: "NVIDIA A100-SXM4-80GB", 90: "NVIDIA H100 80GB HBM3"}
PROCESSORS = {80: 108, 90: 132}
# configurations of a tuned kernel that are tried before the leanest of them is taken
TRIED = 6


@dataclass(frozen=True)
class Cubin:
    """kernel: its function's name. registers: of a thread. spilled: bytes of its local memory. shared: bytes of a block's."""

    kernel: str
    registers: int
    spilled: int
    shared: int


def driver_of(architecture: int) -> Driver:
    properties = vars(Driver.device) | {
        "max_shared_mem": SHARED[architecture],
        "multiprocessor_count": PROCESSORS[architecture],
        "mem_bus_width": 1,
    }
    driver = Driver()
    driver.utils = types.SimpleNamespace(get_device_properties=lambda index: properties)
    driver.get_current_target = lambda: importlib.import_module("triton.backends.compiler").GPUTarget("cuda", architecture, 32)
    return driver


def install(architecture: int) -> None:
    """Once in a process: Triton and PyTorch see one GPU, of compute capability 8.0 or 9.0."""
    for name in EXTENSIONS:
        sys.modules.setdefault(name, types.ModuleType(name))
    importlib.import_module("triton.runtime.driver").driver.set_active(driver_of(architecture))
    torch.cuda.device = lambda index=None: contextlib.nullcontext()
    torch.cuda.device_count = lambda: 1
    torch.cuda.current_device = lambda: 0
    torch.cuda.get_device_name = lambda *_: NAMES[architecture]
    torch.cuda.get_device_capability = lambda *_: divmod(architecture, 10)
    major, minor = divmod(architecture, 10)
    properties = {"multi_processor_count": PROCESSORS[architecture], "total_memory": 80 << 30}
    seen = types.SimpleNamespace(name=NAMES[architecture], major=major, minor=minor, **properties)
    torch.cuda.get_device_properties = lambda *_: seen


def resources(kernel: Any) -> Cubin:
    """Of a compiled kernel, as `cuobjdump` (in Triton's wheel) reads them in its cubin."""
    nvidia = importlib.import_module("triton.backends.nvidia")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [str(Path(nvidia.__path__[0]) / "bin" / "cuobjdump"), "-res-usage", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    (usage,) = [dict(re.findall(r"(\w+):(\d+)", line)) for line in text.splitlines() if "REG:" in line]
    return Cubin(kernel.metadata.name, int(usage["REG"]), int(usage["STACK"]) + int(usage["LOCAL"]), kernel.metadata.shared)


@contextlib.contextmanager
def compiling(architecture: int) -> Iterator[list[Cubin]]:
    """The cubins of all launches inside, of tuned kernels the one that stands for them."""
    from triton.compiler.errors import CompileTimeAssertionFailure
    from triton.runtime.autotuner import Autotuner
    from triton.runtime.errors import OutOfResources, PTXASError
    from triton.runtime.jit import JITFunction

    found: list[Cubin] = []
    compile_only = JITFunction.run

    def launch(self: Any, *args: Any, grid: Any, warmup: bool, **settings: Any) -> Any:
        kernel = compile_only(self, *args, grid=grid, warmup=True, **settings)
        found.append(resources(kernel))
        return kernel

    def tune(self: Any, *args: Any, **settings: Any) -> Any:
        self.nargs = dict(zip(self.arg_names, args, strict=False))
        tried = []
        for config in self.prune_configs(settings)[:TRIED]:
            with contextlib.suppress(OutOfResources, CompileTimeAssertionFailure, PTXASError):
                self.fn.run(*args, **settings, **config.all_kwargs())
                tried.append((found.pop(), config))
                if tried[-1][0].spilled == 0 and tried[-1][0].shared <= SHARED[architecture]:
                    break
        assert tried, f"no configuration of {self.base_fn.__name__} compiles"
        leanest, self.best_config = min(tried, key=lambda each: (each[0].shared > SHARED[architecture], each[0].spilled))
        found.append(leanest)

    # mlstm_kernels has torch.compile fuse small things around its kernels
    with torch.compiler.set_stance("force_eager"), patch.object(JITFunction, "run", launch), patch.object(Autotuner, "run", tune):
        yield found
