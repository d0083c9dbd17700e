"""Compiled loops: their elementary functions, and what happens where they cannot be had."""

import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from llm.ops import compiled, dispatch, loops
from llm.ops.recurrent import loop as recurrent_loop
from llm.ops.scan import chunk
from tests.checkout import ROOT, environment


def run_scan(x: Tensor) -> Tensor:
    """exp(x) for x <= 0: a state of 1 that fades once."""
    N = x.numel()
    zero, one = torch.zeros(1, 1, 1, N), torch.ones(1, 1, N)
    _, state = loops.LOOPS["scan"][1](torch.zeros(1, 1, 1), torch.ones(1, 1, 1), x[None], zero, zero, one)
    return state.flatten()


def test_exp_is_good_to_a_few_units_in_the_last_place():
    x = -torch.cat([torch.linspace(0, 86, 4001), torch.logspace(-8, 1, 1000)])
    got, want = run_scan(x).double(), x.double().exp()
    assert ((got - want) / want).abs().max() < 3e-7


def test_exp_beyond_its_range():
    assert run_scan(torch.tensor([-1e4, -torch.inf])).tolist() == [0, 0]
    assert run_scan(torch.tensor([torch.nan])).isnan().all()


def gate(i: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(c, n, m) after one sLSTM step from c = n = 1, m = 0 with x = (-40, i, i, 0): n - 1 is nothing, m is log sigmoid(i)."""
    V = i.numel()
    x = torch.stack([torch.full_like(i, -40), i, i, torch.zeros_like(i)])[None, None, None]
    state = tuple(torch.full((1, 1, V), value) for value in (0.0, 1.0, 1.0, 0.0))
    _, (_, c, n, m) = recurrent_loop.recurrent(x, torch.zeros(1, 4, V, V), torch.zeros(1, 4, V), state, cell="slstm")
    return c.flatten(), n.flatten(), m.flatten()


def test_logsigmoid_keeps_its_relative_error():
    f = torch.linspace(-30, 15, 401)
    _, _, m = gate(f)
    want = torch.nn.functional.logsigmoid(f.double())
    assert ((m.double() - want) / want).abs().max() < 1e-6


def test_tanh_keeps_its_relative_error():
    g = torch.cat([torch.linspace(-9, 9, 401), torch.logspace(-6, 0, 100)])
    V = g.numel()
    # an LSTM's cell after one step with open input gate and nothing before
    x = torch.stack([torch.full_like(g, 40), torch.full_like(g, -40), g, torch.zeros_like(g)])[None, None, None]
    zero = torch.zeros(1, 1, V)
    _, (_, c) = recurrent_loop.recurrent(x, torch.zeros(1, 4, V, V), torch.zeros(1, 4, V), (zero, zero), cell="lstm")
    want = g.double().tanh()
    assert ((c.flatten().double() - want) / want).abs().nan_to_num().max() < 5e-7


def test_tensors_without_memory_take_the_pytorch_form():
    assert loops.loop("scan", torch.empty(1, device="meta")) is None
    assert loops.loop("attention", torch.empty(1)) is None
    assert loops.loop("scan", torch.empty(1)) is not None


NO_COMPILER = """
import torch
from llm.ops import dispatch
x, A, B, state = torch.randn(1, 70, 4), -torch.rand(4, 3), torch.randn(1, 70, 1, 3), torch.zeros(1, 4, 3)
print(dispatch.run("scan", 70, x, x.abs(), A, B, B, state)[0].shape)
dispatch.run("scan", 70, x, x.abs(), A, B, B, state)
"""


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_compiler_one_line_says_so_and_the_pytorch_form_runs(tmp_path, compiler):
    settings = environment() | {"CXX": compiler, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", NO_COMPILER], cwd=ROOT, env=settings, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "torch.Size([1, 70, 4])", done.stderr
    assert done.stderr.count("scan/loop.cpp could not be compiled") == 1
    assert "CXX" in done.stderr


OTHER_PROCESSOR = """
import sys
import torch
from llm.ops.linear import loop, naive
torch.set_num_threads(1)
torch.manual_seed(0)
q, k, v = (torch.randn(2, 100, 2, n) for n in (17, 17, 33))
starts = torch.rand(2, 100) < 0.05
for dtype, bound in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    streams = [x.to(dtype).requires_grad_() for x in (q, k, v)]
    found = []
    for op, cast in ((naive.linear, torch.float64), (loop.linear, None)):
        leaves = [x.to(cast) for x in streams] if cast else streams
        y, state = op(*leaves, -torch.ones(2, 100, 2, dtype=cast or exact), torch.zeros(2, 2, 17, 33, dtype=cast or exact), starts)
        found.append([y, state, *torch.autograd.grad(y.double().square().sum() + state.double().sum(), leaves)])
    for want, got in zip(*found):
        error = (got.double() - want).norm() / want.norm()
        assert error <= bound, (dtype, error)
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the flags are those of x86")
@pytest.mark.parametrize("without", ["avx512bf16", pytest.param("avx512f", marks=pytest.mark.slow)])
def test_processors_with_fewer_instructions_compute_the_same(tmp_path, without):
    settings = environment() | {"CXX": f"g++ -mno-{without}", "XDG_CACHE_HOME": str(tmp_path)}
    command = [sys.executable, "-c", OTHER_PROCESSOR]
    done = subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(list(tmp_path.glob("braid/ops/linear-*.so"))) == 1


def test_where_the_home_cannot_be_written_a_folder_of_the_process_is_used(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    folder = compiled._cache.__wrapped__()
    assert folder.is_dir()
    assert tmp_path not in folder.parents


def test_the_dispatcher_takes_the_loop(monkeypatch):
    monkeypatch.setattr(chunk, "scan", None)
    x, A, B = torch.randn(1, 5, 4), -torch.rand(4, 3), torch.randn(1, 5, 1, 3)
    y, _ = dispatch.run("scan", 5, x, x.abs(), A, B, B, torch.zeros(1, 4, 3))
    assert y.shape == (1, 5, 4)


def test_many_that_want_a_loop_at_once_wait_for_one_that_makes_it(tmp_path, monkeypatch):
    compiler = tmp_path / "compiler"
    # it counts its calls, takes its time, and makes the file that stands behind -o
    compiler.write_text('#!/bin/sh\necho >> "$0.calls"; sleep 0.3\nwhile [ "$1" != -o ]; do shift; done; : > "$2"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setattr(compiled, "_cache", lambda: tmp_path)
    with ThreadPoolExecutor(4) as pool:
        files = list(pool.map(compiled._compiled, [compiled.HERE / "scan" / "loop.cpp"] * 4))
    assert len(set(files)) == 1
    assert files[0].is_file()
    assert len((tmp_path / "compiler.calls").read_text()) == 1
