"""The gated linear recurrence against Mamba-2's listing and fla's plain forms of retention, simple GLA and GLA."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from llm.mixers.retention import Retention, RetentionConfig
from tests.peers import peers
from tests.peers.parity import DTYPES, FLOAT32, differences, forms, within

B, T, H, G, K, V = 2, 150, 4, 2, 8, 6


def streams(groups: int = H, gates: tuple[int, ...] = (H,)) -> dict[str, Tensor]:
    torch.manual_seed(0)
    inputs = {"q": torch.randn(B, T, groups, K), "k": torch.randn(B, T, groups, K), "v": torch.randn(B, T, H, V)}
    return inputs | {"gate": torch.randn(B, T, *gates), "state": torch.randn(B, H, K, V)}


def rounded(inputs: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    return inputs | {name: inputs[name].to(dtype) for name in "qkv"}


@forms("linear")
def test_recurrence_is_the_listing_of_mamba2(op):
    """The listing's states are `[V, K]`, its B and C are per head, and its chunks divide T."""
    ssd = peers.load("mamba_ssm.modules.ssd_minimal").ssd_minimal_discrete

    def theirs(q, k, v, gate, state) -> tuple[Tensor, Tensor]:
        q, k = (x.repeat_interleave(H // G, 2) for x in (q, k))
        y, final = ssd(v, F.logsigmoid(gate), k, q, block_len=30, initial_states=state.transpose(-1, -2)[:, None])
        return y, final.transpose(-1, -2)

    found = differences(lambda q, k, v, gate, state: op(q, k, v, F.logsigmoid(gate), state), theirs, streams(G))
    within(found, FLOAT32)


@DTYPES
@forms("linear")
def test_fixed_decay_is_retention_of_fla(op, dtype, bound):
    """The decays of both are those of the paper's heads: ours come from the layer. Theirs starts without a state."""
    naive = peers.load("fla.ops.retention.naive").naive_retention
    log_decay = Retention(RetentionConfig(heads=H), H * K).log_decay_H(torch.zeros(1))

    def ours(q, k, v) -> list[Tensor]:
        return [op(q, k, v, log_decay, torch.zeros(B, H, K, V), scale=K**-0.5)[0]]

    def theirs(q, k, v) -> list[Tensor]:
        return [naive(*(x.transpose(1, 2) for x in (q, k, v))).transpose(1, 2)]

    inputs = rounded(streams(), dtype)
    within(differences(ours, theirs, {name: inputs[name] for name in "qkv"}), bound)


@pytest.mark.parametrize("form", ["recurrent", "chunk"])
@DTYPES
@forms("linear")
def test_decay_per_head_is_simple_gla_of_fla(op, form, dtype, bound):
    naive = getattr(peers.load("fla.ops.simple_gla.naive"), f"naive_{form}_simple_gla")

    def theirs(q, k, v, gate, state) -> tuple[Tensor, Tensor]:
        return naive(q, k, v, F.logsigmoid(gate), initial_state=state, output_final_state=True, scale=0.4)

    found = differences(
        lambda q, k, v, gate, state: op(q, k, v, F.logsigmoid(gate), state, scale=0.4), theirs, rounded(streams(), dtype)
    )
    within(found, bound)


@DTYPES
@forms("linear")
def test_decay_per_channel_is_gla_of_fla(op, dtype, bound):
    naive = peers.load("fla.ops.gla.naive").naive_recurrent_gla
    found = differences(
        lambda q, k, v, gate, state: op(q, k, v, F.logsigmoid(gate), state, scale=K**-0.5),
        lambda q, k, v, gate, state: naive(q, k, v, F.logsigmoid(gate), initial_state=state, output_final_state=True),
        rounded(streams(gates=(H, K)), dtype),
    )
    within(found, bound)
