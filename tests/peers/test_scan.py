"""The selective scan against mamba_ssm's plain form, Mamba's layer against mambapy's, the scan per channel against fla's HGRN."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from llm.mixers.mamba import Mamba, MambaConfig
from tests.peers import peers
from tests.peers.parity import DTYPES, FLOAT32, differences, forms, layer_differences, moved, within

B, T, D, G, N, WIDTH = 2, 150, 12, 3, 8, 32


def streams() -> dict[str, Tensor]:
    torch.manual_seed(0)
    sizes = {"u": (B, T, D), "z": (B, T, D), "dt": (B, T, D), "bias": (D,), "A": (D, N), "skip": (D,), "B": (B, T, G, N)}
    values = {name: torch.randn(size) for name, size in sizes.items()}
    return values | {"C": torch.randn(B, T, G, N), "A": -values["A"].exp()}


def reference(u, z, dt, bias, A, skip, B, C) -> tuple[Tensor, Tensor]:
    scan = peers.load("mamba_ssm.ops.selective_scan_interface").selective_scan_ref
    u, z, dt = (x.transpose(1, 2) for x in (u, z, dt))
    B, C = (x.permute(0, 2, 3, 1) for x in (B, C))
    if A.is_complex():
        # theirs are real, with real and imaginary parts in turns along time
        B, C = (torch.view_as_real(x).flatten(-2) for x in (B, C))
    y, final = scan(u, dt, A, B, C, skip, z, bias, delta_softplus=True, return_last_state=True)
    return y.transpose(1, 2), final


def mamba(op, pairs: int = 1):
    """Mamba's use of the op, with y times `pairs`."""

    def run(u, z, dt, bias, A, skip, B, C) -> tuple[Tensor, Tensor]:
        dt = F.softplus(dt.float() + bias)
        y, final = op(u, dt, A, B, C, torch.zeros(len(u), *A.shape, dtype=A.dtype))
        return (pairs * y + skip.to(u.dtype) * u) * F.silu(z), final

    return run


@DTYPES
@forms("scan")
def test_scan_is_that_of_mamba_ssm(op, dtype, bound):
    inputs = {name: x.to(dtype) if name in "uzBC" or name == "dt" else x for name, x in streams().items()}
    within(differences(mamba(op), reference, inputs), bound)


@forms("scan")
def test_complex_scan_is_that_of_mamba_ssm(op):
    """Theirs doubles y, for states that stand for conjugate pairs; ours leaves that to the caller."""
    inputs = streams()
    for name in "ABC":
        inputs[name] = torch.complex(inputs[name], torch.randn(inputs[name].shape))
    within(differences(mamba(op, pairs=2), reference, inputs), FLOAT32)


@DTYPES
@forms("elementwise")
def test_scan_per_channel_is_that_of_fla(op, dtype, bound):
    theirs = peers.load("fla.ops.hgrn.naive").naive_recurrent_hgrn
    torch.manual_seed(0)
    inputs = {"x": torch.randn(B, T, D).to(dtype), "gate": torch.randn(B, T, D), "state": torch.randn(B, D)}
    within(
        differences(
            lambda x, gate, state: op(x, F.logsigmoid(gate).exp(), state),
            lambda x, gate, state: theirs(x, F.logsigmoid(gate), state, output_final_state=True),
            inputs,
        ),
        bound,
    )


@pytest.mark.parametrize("parallel", [False, True], ids=["sequential", "parallel"])
def test_mamba_is_that_of_mambapy(parallel):
    theirs = peers.load("mambapy.mamba")
    layer = theirs.MambaBlock(theirs.MambaConfig(d_model=WIDTH, n_layers=1, d_state=N, pscan=parallel))

    def weights(p: dict[str, Tensor]) -> dict[str, Tensor]:
        same = ("in_proj.weight", "x_proj.weight", "dt_proj.weight", "A_log", "D", "out_proj.weight")
        conv = {"conv1d.weight": p["conv_weight"][:, None], "conv1d.bias": p["conv_bias"]}
        return {name: p[name] for name in same} | conv | {"dt_proj.bias": p["dt_bias"]}

    torch.manual_seed(0)
    found = layer_differences(moved(Mamba(MambaConfig(state=N), WIDTH)), layer, weights, torch.randn(B, T, WIDTH))
    within(found, FLOAT32)
