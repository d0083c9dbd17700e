"""Kernels on a GPU against the definitions, through the dispatcher, in bf16: as exact as PyTorch's forms within a factor of 2.

docs/kernels.md says what was found on one.
"""

from dataclasses import replace
from functools import partial

import pytest
import torch

from llm.ops import kernels, routes
from tests.kernels.cases import (
    Case,
    attention_streams,
    conv_streams,
    differences,
    linear_streams,
    memory_streams,
    mlstm_streams,
    norm_streams,
    rotary_streams,
    scan_streams,
    ssd_streams,
)
from tests.kernels.triton_cases import CASES, NORM, PINNED, TOKENWISE, loss_of, tokenwise

WIDE = [
    Case("simple GLA, K=V=128", "linear", "fla", linear_streams("per head", 128, 128), {"scale": 1.0}, tokens=300),
    Case("GLA, K=V=128", "linear", "fla", linear_streams("per channel", 128, 128), {"scale": 1.0}, tokens=300),
    Case("SSD, K=128, V=64", "ssd", "fla", lambda T: ssd_streams(T, 128, 64), tokens=300),
    Case("mLSTM, K=128, V=256", "mlstm", "fla", lambda T: mlstm_streams(T, 128, 256), {"scale": 128**-0.5}, tokens=300),
    Case("Titans, K=V=128", "memory", "triton", lambda T: memory_streams(T, 128, 128, 64), {"chunk": 64}, tokens=300),
    Case("causal-conv1d", "conv", "causal_conv1d", lambda T: conv_streams(T, 256)),
    Case("selective scan", "scan", "mamba_ssm", lambda T: scan_streams(T, 64, 16), tokens=300),
    Case("flash-attn", "attention", "flash", attention_streams(0), {"scale": 0.25}, tokens=300),
    Case("flash-attn, window and cache", "attention", "flash", attention_streams(7), {"scale": 0.25, "window": 5}, tokens=300),
    tokenwise("RMSNorm, D=4096", "norm", "fla", norm_streams(4096), NORM, exact=PINNED),
    tokenwise("rotary, K=128", "rotary", "flash", rotary_streams(128), {"theta": 10000.0}),
    loss_of("cross-entropy, Z=50304", 50304, tokens=64, cap=30.0, z_loss=1e-4),
    Case("FlexAttention", "attention", "flex", attention_streams(7), {"scale": 0.25, "window": 5}, tokens=300),
]


@pytest.mark.gpu
@pytest.mark.timeout(300)
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("case", [*WIDE, *CASES, *TOKENWISE], ids=lambda case: case.name)
def test_a_kernel_is_as_exact_as_the_pytorch_form(case, documents, request):
    """A memory's products are of float32, which the kernel makes TF32: so they are in PyTorch's form too."""
    if case.family == "memory":
        request.addfinalizer(partial(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision()))
        torch.set_float32_matmul_precision("high")
    if documents and not case.documents:
        pytest.skip("its route refuses documents")
    absent = [why for route in routes.ROUTES[case.family] if route.name == case.route and (why := kernels.missing(route))]
    if absent:
        pytest.skip(absent[0])
    with torch.device("cuda"):
        found, _ = differences(case, torch.bfloat16, documents)
        plain, _ = differences(replace(case, route="torch"), torch.bfloat16, documents)
    assert {name: error for name, error in found.items() if error > 2 * plain[name] + 1e-5} == {}
