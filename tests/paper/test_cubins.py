"""Every Triton kernel behind the ops is compiled for sm_80 and sm_90 at sizes of models that people train.

The table in docs/kernels.md is of the last `make gpu-paper WRITE=1`. A kernel that asks for more shared memory than a block has
cannot be launched, and one that spills more than the table says has become slower: either fails.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch

from tests.checkout import ROOT
from tests.kernels.cases import (
    Case,
    cast,
    conv_streams,
    elementwise_streams,
    gradients,
    head_norm_streams,
    leaves_of,
    linear_streams,
    memory_streams,
    mlstm_streams,
    norm_streams,
    recurrent_streams,
    rotary_streams,
    run,
    ssd_streams,
    stretch,
    swiglu_streams,
)
from tests.kernels.interpreter import device
from tests.kernels.triton_cases import NORM, PINNED, loss_of, tokenwise
from tests.paper.ahead import SHARED, Cubin, compiling

ARCHITECTURE = int(os.environ["GPU_PAPER"])
TABLE = ROOT / "docs" / "kernels.md"
HEAD = f"<!-- sm_{ARCHITECTURE}: written by `make gpu-paper WRITE=1` -->\n"
WIDE = {"per head": [(64, 64), (128, 128), (256, 256)], "fixed": [(256, 512)], "per channel": [(128, 128)]}
TOKENS = 512


@dataclass(frozen=True)
class Call:
    case: Case
    documents: bool = True
    dtype: torch.dtype = torch.bfloat16

    def __str__(self) -> str:
        return f"{self.case.name}, {'documents' if self.documents else 'rows'}"


def case(name: str, family: str, route: str, streams, settings=None, **rest) -> Case:
    return Case(name, family, route, streams, settings or {}, **{"tokens": TOKENS, **rest})


def _calls() -> Iterator[Call]:
    for decay, sizes in WIDE.items():
        for K, V in sizes:
            yield Call(case(f"{decay} decay, K={K}, V={V}", "linear", "fla", linear_streams(decay, K, V)))
    for K, V in [(64, 64), (128, 128), (256, 256), (256, 512)]:
        yield Call(case(f"mLSTM, K={K}, V={V}", "mlstm", "fla", lambda T, K=K, V=V: mlstm_streams(T, K, V), {"scale": K**-0.5}))
    one = case("per head decay, K=128, V=128", "linear", "fla", linear_streams("per head", 128, 128))
    yield Call(one, documents=False)
    yield Call(case("SSD, K=128, V=64", "ssd", "fla", lambda T: ssd_streams(T, 128, 64)))
    yield Call(case("SSD, K=128, V=64", "ssd", "mamba_ssm", lambda T: ssd_streams(T, 128, 64)), documents=False)
    for K, V in [(128, 128), (256, 512)]:
        streams = lambda T, K=K, V=V: mlstm_streams(T, K, V)  # noqa: E731
        inference = case(f"mLSTM, K={K}, V={V}", "mlstm", "mlstm_kernels", streams, {"scale": K**-0.5}, gradient=False)
        yield Call(inference, documents=False)
    for K in (64, 128, 256):
        streams = lambda T, K=K: memory_streams(T, K, K, 64)  # noqa: E731
        yield Call(case(f"Titans, K={K}, V={K}", "memory", "triton", streams, {"chunk": 64}))
    yield Call(case("elementwise, D=16", "elementwise", "fla", elementwise_streams, exact=("decay", "state")))
    for documents in (True, False):
        yield Call(case("convolution, D=2048, W=4", "conv", "fla", lambda T: conv_streams(T, 2048)), documents)
    for cell, V in [("lstm", 64), ("slstm", 64)]:
        streams = lambda T, cell=cell, V=V: recurrent_streams(cell)(T, V)  # noqa: E731
        yield Call(
            case(f"{cell}, V={V}", "recurrent", "flashrnn", streams, {"cell": cell}, tokens=16, state_gradient=cell == "lstm")
        )
    for width in (2048, 4096, 8192):
        yield alone(f"RMSNorm, D={width}", "norm", "fla", norm_streams(width), NORM, exact=PINNED, tokens=TOKENS)
    yield alone("RMSNorm, D=128", "norm", "fla", norm_streams(128), NORM, exact=PINNED, tokens=TOKENS)
    for V in (128, 512, 1024):
        yield alone(f"norm of heads, V={V}", "head norm", "fla", head_norm_streams(True, V), NORM, exact=PINNED, tokens=TOKENS)
    for K in (64, 128, 256):
        yield alone(f"rotary, K={K}", "rotary", "flash", rotary_streams(K), {"theta": 10000.0}, tokens=TOKENS)
    yield alone("SwiGLU, F=5504", "swiglu", "fla", lambda T: swiglu_streams(T, 5504), tokens=TOKENS)
    for Z, cap in [(50304, None), (50304, 30.0), (128256, None), (128256, 30.0)]:
        yield Call(
            loss_of(f"cross-entropy, Z={Z}{', cap' * (cap is not None)}", Z, tokens=32, cap=cap, z_loss=1e-4), documents=False
        )


def alone(*words, **settings) -> Call:
    return Call(tokenwise(*words, **settings), documents=False)


CALLS = list(_calls())


def committed() -> dict[str, int]:
    """Bytes spilled by each call's kernels, of the table in the docs."""
    _, _, rest = TABLE.read_text().partition(HEAD)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in rest.partition("\n\n")[0].splitlines()[2:]]
    return {f"{row[0]} ({row[1]})": int(row[4].split()[0]) for row in rows}


@pytest.fixture(scope="module")
def lines() -> Iterator[list[str]]:
    rows = ["| call | kernels of | kernels | most registers | bytes spilled | most shared memory |", "|---|---|---|---|---|---|"]
    yield rows
    if os.environ.get("WRITE") == "1":
        before, _, rest = TABLE.read_text().partition(HEAD)
        TABLE.write_text(before + HEAD + "\n".join(rows) + "\n\n" + rest.partition("\n\n")[2])


def row_of(call: Call, cubins: list[Cubin]) -> str:
    registers, shared = (max(cubins, key=key) for key in (lambda c: c.registers, lambda c: c.shared))
    spilling = sorted({cubin.kernel for cubin in cubins if cubin.spilled})
    spilled = f"{sum(cubin.spilled for cubin in cubins)}" + (f" ({', '.join(spilling)})" if spilling else "")
    most = f"{registers.registers} ({registers.kernel})", spilled, f"{shared.shared / 1024:.0f} KiB ({shared.kernel})"
    return f"| {' | '.join([str(call), call.case.route, str(len(cubins)), *most])} |"


@pytest.mark.timeout(600)
@pytest.mark.parametrize("call", CALLS, ids=lambda call: f"{call} by {call.case.route}")
def test_kernels_compile_and_fit(call: Call, lines: list[str]):
    torch.manual_seed(0)
    streams = cast(call.case, call.case.streams(call.case.tokens), call.dtype)
    with device(divmod(ARCHITECTURE, 10)), compiling(ARCHITECTURE) as found:
        outputs = run(call.case, streams, stretch(call.case, call.case.starts() if call.documents else None))
        if call.case.gradient:
            gradients(outputs[: None if call.case.state_gradient else 1], list(leaves_of(streams).values()))
    cubins = list(dict.fromkeys(found))
    assert cubins, "no kernel was launched"
    lines.append(row_of(call, cubins))
    assert max(cubin.shared for cubin in cubins) <= SHARED[ARCHITECTURE]
    if os.environ.get("WRITE") != "1":
        assert sum(cubin.spilled for cubin in cubins) <= committed()[f"{call} ({call.case.route})"], cubins
