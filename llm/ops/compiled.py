"""C++ loops for CPU tensors: compiled when first called, kept in a cache, called with pointers.

A recurrence that neither a matrix product nor a chunk can shorten is a loop over tokens, and in Python each step of that costs more
than its arithmetic. Sources lie beside their op and need a C++ compiler and OpenMP, nothing of torch, so they compile in seconds.
Where there is no compiler, one line says so and the PyTorch form runs.
"""

import atexit
import ctypes
import fcntl
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

HERE = Path(__file__).parent
HEADERS = [HERE / name for name in ("simd.h", "gemm.h", "rows.h")]
# Contracting a * b + c is wanted; anything that reorders sums is not. errno and traps are not read.
FLAGS = ["-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-shared"]
# seconds that this process has waited for its loops
spent = 0.0
SUFFIX = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "bfloat16"}


def usable(x: Tensor, source: str) -> bool:
    """Whether the loop of `source` (a path under llm/ops) can run on `x`: a tensor on the CPU, and a compiler found.

    A tensor without values (FakeTensor) passes for one with them: what is made for the loop is then what a run makes.
    """
    plain = x.device.type == "cpu" and type(x) in (Tensor, torch.nn.Parameter, FakeTensor) and not torch.compiler.is_compiling()
    return plain and _library(source) is not None


def call(source: str, function: str, dtype: torch.dtype, *arguments: Tensor | float | None) -> None:
    """`function_float`, `_double` or `_bfloat16` of `source`, with the number of threads as its last argument.

    Tensors are passed as pointers and must be contiguous; None is a null pointer.
    """
    library = _library(source)
    assert library is not None, f"{source}: call it only where it is usable"
    if any(isinstance(a, FakeTensor) for a in arguments):
        return
    values = [_argument(a) for a in (*arguments, torch.get_num_threads())]
    getattr(library, f"{function}_{SUFFIX[dtype]}")(*values)


def _argument(a: Tensor | float | None) -> ctypes.c_void_p | ctypes.c_int64 | ctypes.c_double:
    if isinstance(a, Tensor):
        assert a.is_contiguous()
        return ctypes.c_void_p(a.data_ptr())
    if a is None:
        return ctypes.c_void_p(None)
    return ctypes.c_int64(a) if isinstance(a, int) else ctypes.c_double(a)


@functools.cache
def _library(source: str) -> ctypes.CDLL | None:
    global spent
    began = time.perf_counter()
    try:
        return ctypes.CDLL(str(_compiled(HERE / source)))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = getattr(error, "stderr", None) or str(error)
        print(
            f"ops: {source} could not be compiled ({reason.strip().splitlines()[-1]}), so its slower PyTorch form runs; "
            "install g++, or name a C++ compiler in CXX",
            file=sys.stderr,
        )
        return None
    finally:
        spent += time.perf_counter() - began


def _compiled(source: Path) -> Path:
    """The library's file, made if the cache has none for this source, compiler and processor."""
    compiler = shlex.split(os.environ.get("CXX", "")) or [shutil.which("g++") or shutil.which("c++") or "g++"]
    texts = [file.read_text() for file in (source, *HEADERS)]
    key = "\0".join([*texts, *compiler, *FLAGS, torch.__version__, _processor()])
    file = _cache() / f"{source.parent.name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.so"
    if not file.exists():
        # Many ranks may want it at once: one makes it, the others wait. A name stands for a whole file, whatever happens.
        with _alone(file.with_suffix(".lock")), tempfile.TemporaryDirectory(dir=file.parent) as folder:
            made = Path(folder) / file.name
            command = [*compiler, *FLAGS, f"-I{HERE}", str(source), "-o", str(made), *_openmp()]
            if not file.exists():
                subprocess.run(command, check=True, capture_output=True, text=True)
                made.rename(file)
    return file


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time; the lock ends with its holder. File systems that know no locks let all in."""
    with path.open("w") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _openmp() -> list[str]:
    """torch's own OpenMP runtime, so that one pool of threads serves both."""
    return [str(path) for path in (Path(torch.__file__).parent / "lib").glob("libgomp*.so*")]


def _processor() -> str:
    """What `-march=native` turns on: homes are shared between machines that differ in it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())


@functools.cache
def _cache() -> Path:
    """A folder that only this user writes to; of this process alone where the home cannot be written. BRAID_OPS_CACHE names one."""
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "braid" / "ops"
        folder = Path(os.environ.get("BRAID_OPS_CACHE") or home)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if os.access(folder, os.W_OK):
            return folder
    except (OSError, RuntimeError):
        pass
    own = tempfile.mkdtemp(prefix="braid-ops-")
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    return Path(own)
