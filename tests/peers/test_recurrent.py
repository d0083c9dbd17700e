"""The nonlinear cells against flashrnn's and xlstm's plain forms, and sLSTM's layer against xlstm's with copied weights.

Both know the first token by a normaliser of 0 in the whole batch, ours per channel: at the start of all rows they are one.
"""

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from llm.mixers.slstm import SLSTM, SLSTMConfig
from llm.ops.recurrent.cells import CELLS
from tests.peers import peers
from tests.peers.parity import DTYPES, FLOAT32, Form, differences, forms, moved, within

B, T, H, V, WIDTH = 2, 150, 2, 6, 32
BIASES = ("input_bias", "forget_bias", "other_bias")
CARRIED = pytest.mark.parametrize("carried", [False, True], ids=["fresh", "carried"])


def streams(cell: str, carried: bool, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A carried sLSTM's normaliser is at least 1, as every step leaves it."""
    torch.manual_seed(0)
    M = CELLS[cell].gates
    x, R, bias = torch.randn(B, T, H, M, V), torch.randn(H, M, V, V) / V**0.5, torch.randn(H, M, V)
    state = {name: torch.randn(B, H, V) for name in CELLS[cell].states} if carried else {}
    if "n" in state:
        state["n"] = 1 + state["n"].abs()
    return {"x": x.to(dtype), "R": R, "bias": bias} | state


def zeros(cell: str) -> dict[str, Tensor]:
    return {name: torch.zeros(B, H, V) for name in CELLS[cell].states}


def ours(op, cell: str) -> Form:
    def run(x, R, bias, **state) -> list[Tensor]:
        h, final = op(x, R, bias, tuple((state or zeros(cell)).values()), cell=cell)
        return [h, *final]

    return run


def flashrnn(cell: str) -> Form:
    """Its GRU has a fourth bias, of n's input, and lists the recurrent part of n first."""
    vanilla = peers.load("flashrnn.flashrnn.vanilla")
    pointwise = vanilla.flashrnn_pointwise_function_registry[cell]

    def run(x, R, bias, **state) -> list[Tensor]:
        if cell == "gru":
            R, bias = R[:, [2, 0, 1]], torch.cat([bias[:, [2, 0, 1]], torch.zeros(H, 1, V)], 1)
        before = torch.stack(list((state or zeros(cell)).values()), 1)
        kernel, steps = R.permute(0, 3, 1, 2), x.float().permute(1, 0, 3, 2, 4)
        states, final = vanilla.flashrnn_forward(steps, before[None], kernel, bias.transpose(0, 1), pointwise)
        return [states[:, :, 0].transpose(0, 1).to(x.dtype), *final[0].unbind(1)]

    return run


def xlstm(cell: str) -> Form:
    vanilla = peers.load("xlstm.blocks.slstm.src.vanilla")
    pointwise = vanilla.slstm_pointwise_function_registry[cell]

    def run(x, R, bias, **state) -> list[Tensor]:
        before = torch.stack([s.flatten(1) for s in (state or zeros(cell)).values()])
        steps = x.float().permute(1, 0, 3, 2, 4).flatten(2)
        states, final, _ = vanilla.slstm_forward(steps, before, R.flatten(1, 2), bias.transpose(0, 1).flatten(), pointwise)
        return [states[0, 1:].unflatten(-1, (H, V)).transpose(0, 1).to(x.dtype), *final.unflatten(-1, (H, V)).unbind()]

    return run


@DTYPES
@CARRIED
@pytest.mark.parametrize("cell", CELLS)
@forms("recurrent")
def test_cell_is_that_of_flashrnn(op, cell, carried, dtype, bound):
    within(differences(ours(op, cell), flashrnn(cell), streams(cell, carried, dtype)), bound)


@CARRIED
@pytest.mark.parametrize("cell", ["lstm", "slstm"])
@forms("recurrent")
def test_cell_is_that_of_xlstm(op, cell, carried):
    within(differences(ours(op, cell), xlstm(cell), streams(cell, carried)), FLOAT32)


def test_slstm_is_that_of_xlstm():
    """In theirs the map named fgate feeds the input gate's slot and igate the forget gate's, so the two are crossed here.

    The biases are one input: to the input gates' a normalised cell is blind, so that gradient alone is rounding in both.
    """
    theirs = peers.load("xlstm.blocks.slstm.layer")
    layer = theirs.sLSTMLayer(theirs.sLSTMLayerConfig(embedding_dim=WIDTH, num_heads=4, backend="vanilla", dtype="float32"))
    mixer = moved(SLSTM(SLSTMConfig(heads=4), WIDTH))

    def ours(x, bias, **p) -> list[Tensor]:
        parts = dict(zip(BIASES, bias.split([1, 1, 2], 1), strict=True))
        return [functional_call(mixer, p | parts, x, strict=True)[0]]

    def crossed(x, bias, **p) -> list[Tensor]:
        weights = {
            "conv1d.conv.weight": p["conv_weight"][:, None],
            "conv1d.conv.bias": p["conv_bias"],
            **{f"{name}gate.weight": w for name, w in zip("fizo", p["gate_weight"], strict=True)},
            "slstm_cell._recurrent_kernel_": p["recurrent_weight"].flatten(1, 2),
            "slstm_cell._bias_": bias.transpose(0, 1).flatten(),
            "group_norm.weight": p["head_norm_weight"].flatten() - 1,
        }
        return [functional_call(layer, weights, x, strict=True)]

    torch.manual_seed(0)
    inputs = dict(mixer.named_parameters()) | {"x": torch.randn(B, T, WIDTH)}
    inputs["bias"] = torch.cat([inputs.pop(name) for name in BIASES], 1)
    within(differences(ours, crossed, inputs), FLOAT32)
