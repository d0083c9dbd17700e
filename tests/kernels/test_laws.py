"""Documents and states by real kernels; and that what is refused is refused for a reason."""

import pytest
import torch
from torch.utils._pytree import tree_map_only, tree_structure, tree_unflatten

from llm.docs import Docs, Stretch
from llm.errors import ConfigError
from llm.ops import dispatch, kernels
from llm.ops.linear.kernel import mlstm_xl_chunk
from llm.ops.linear.naive import mlstm
from tests.kernels.cases import B, Case, cast, define, differences, error, flat, gradients, leaves_of, mlstm_streams, run, stretch
from tests.kernels.triton_cases import CASES

START = 35
BY_NAME = {case.name: case for case in CASES}
ISOLATING = [case for case in CASES if case.documents]
NOT_OF_TOKENS = ("state", "initial", "tail", "rate", "weight", "bias", "A", "R")


def streams_of(case: Case) -> dict:
    torch.manual_seed(0)
    return cast(case, case.streams(case.tokens), torch.float32)


def of_tokens(name: str, x: object) -> bool:
    return isinstance(x, torch.Tensor) and x.ndim > 1 and name.partition(".")[0] not in NOT_OF_TOKENS


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", ISOLATING, ids=lambda case: case.name)
def test_nothing_before_a_start_touches_it(case):
    """To the bit: outputs, final state and gradients from the start on; gradients before it are zero."""
    starts = torch.zeros(B, case.tokens, dtype=torch.bool)
    start = min(START, case.tokens // 2)
    starts[:, start] = True
    streams = streams_of(case)
    found = []
    for factor in (1.0, 3.0):
        moved = {
            name: torch.cat([factor * x[:, :start], x[:, start:]], 1).detach().requires_grad_()
            if of_tokens(name, x)
            else tree_map_only(
                torch.Tensor, lambda s, by=factor if name in ("state", "tail") else 1: (by * s).detach().requires_grad_(), x
            )
            for name, x in streams.items()
        }
        y, *state = run(case, moved, stretch(case, starts))
        after = [y[:, start:], *state][: None if case.state_gradient else 1]
        leaves = leaves_of(moved)
        got = dict(zip(leaves, gradients(after, list(leaves.values())), strict=True))
        for name, gradient in got.items():
            if name.partition(".")[0] in ("state", "tail"):
                assert not gradient.any(), name
            if of_tokens(name, gradient):
                assert not gradient[:, :start].any(), name
        found.append([*after, *(g[:, start:] for name, g in got.items() if of_tokens(name, g))])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_state_carried_on_is_one_pass(case):
    cut = {"mLSTM, xl_chunk": 128, "LSTM, fused": 2, "sLSTM, fused": 2}.get(case.name, 40)
    streams = tree_map_only(torch.Tensor, torch.Tensor.detach, streams_of(case))
    whole = define(case, tree_map_only(torch.Tensor, torch.Tensor.double, streams), None)
    outputs, state = [], streams.get("state", streams.get("tail"))
    for part in (slice(0, cut), slice(cut, case.tokens)):
        now = {name: x[:, part] if of_tokens(name, x) else x for name, x in streams.items()}
        now |= {name: state for name in ("state", "tail") if name in now}
        y, *rest = run(case, now, stretch(case, None, behind=5 + part.start, tokens=part.stop - part.start))
        state = tree_unflatten(rest, tree_structure(state))
        outputs.append(y.detach())
    for got, want in zip([torch.cat(outputs, 1), *flat(state)], whole, strict=True):
        assert error(got, want) <= 2e-5


@pytest.mark.parametrize("name", ["SSD, chunk scan", "mLSTM, xl_chunk"])
def test_documents_are_refused_where_a_kernel_cannot_start_them(name):
    case = BY_NAME[name]
    starts = torch.zeros(B, case.tokens, dtype=torch.bool)
    starts[0, 3] = True
    with pytest.raises(ConfigError, match="cannot start a document inside a row"):
        run(case, streams_of(case), stretch(case, starts))


@pytest.mark.timeout(300)
def test_a_row_that_starts_with_a_document_forgets_its_state():
    case = BY_NAME["retention, chunk scan"]
    starts = torch.zeros(B, case.tokens, dtype=torch.bool)
    starts[0, 0] = True
    streams = tree_map_only(torch.Tensor, torch.Tensor.detach, streams_of(case))
    want = define(case, tree_map_only(torch.Tensor, torch.Tensor.double, streams), starts)
    assert all(error(a, b) <= 2e-5 for a, b in zip(run(case, streams, stretch(case, starts)), want, strict=True))


def test_chunk_scan_lets_an_earlier_documents_rounding_through():
    """Why it starts no documents: told of them by `seq_idx`, it sums decays across their starts."""
    torch.manual_seed(0)
    scan = kernels.entry("mamba_ssm.ops.triton.ssd_combined:mamba_chunk_scan_combined")
    x, step, rate = torch.randn(1, 64, 1, 16), torch.rand(1, 64, 1), -torch.rand(1)
    k, q = torch.randn(2, 1, 64, 1, 16).unbind()
    documents = (torch.arange(64) >= START).int()[None]
    other = torch.cat([3 * step[:, :START], step[:, START:]], 1)
    y, moved = (scan(x, s, rate, k, q, chunk_size=64, seq_idx=documents)[:, START:] for s in (step, other))
    assert not torch.equal(y, moved)
    assert error(moved, y) < 1e-5


@pytest.mark.timeout(300)
def test_xl_chunk_leaves_out_the_normalisers_gradient():
    """Why it is for inference alone."""
    case = BY_NAME["mLSTM, xl_chunk"]
    streams = streams_of(case)
    small = {n: x[:1, :128, :1] if isinstance(x, torch.Tensor) else tuple(s[:1, :1] for s in x) for n, x in streams.items()}
    small = tree_map_only(torch.Tensor, lambda x: x.detach().requires_grad_(), small)
    at = Stretch(None, torch.zeros(1), 0, 128, False)
    with kernels.using(mlstm="mlstm_kernels"), pytest.raises(ConfigError, match="has no exact gradient"):
        dispatch.run("mlstm", 128, *small.values(), at=at, scale=0.25)
    (got, _), (want, _) = mlstm_xl_chunk(*small.values(), scale=0.25, at=at), mlstm(*small.values(), scale=0.25)
    assert error(got, want) < 2e-5
    dq = [torch.autograd.grad(y.square().sum(), small["q"])[0] for y in (got, want)]
    assert error(*dq) > 0.1


@pytest.mark.timeout(300)
def test_mlstm_of_xlstm_7b_s_512_value_channels():
    """fla takes values in blocks, any number of them: these are 528 columns with the normaliser's."""
    case = Case("", "mlstm", "fla", lambda T: mlstm_streams(T, 16, 512), {"scale": 0.25})
    found, _ = differences(case, torch.float32, documents=True)
    assert max(found.values()) <= 2e-5, found


def test_slstms_final_state_has_no_gradient_and_says_so():
    case = BY_NAME["sLSTM, fused"]
    streams = streams_of(case)
    y, h, c, *_ = run(case, streams, stretch(case, None))
    (y.sum() + h.sum()).backward(retain_graph=True)
    with pytest.raises(ConfigError, match="no gradient of sLSTM's final c, n and m"):
        c.sum().backward()


def test_a_large_gate_does_not_become_nan():
    case = BY_NAME["sLSTM, fused"]
    streams = tree_map_only(torch.Tensor, torch.Tensor.detach, streams_of(case))
    streams["x"] = streams["x"].clone()
    streams["x"][:, :, :, 2] = -200
    y, *_ = run(case, streams, stretch(case, None))
    assert torch.isfinite(y).all()
    assert error(y, define(case, tree_map_only(torch.Tensor, torch.Tensor.double, streams), None)[0]) <= 2e-5


def test_documents_in_rows_of_one_are_no_cut():
    assert not Docs.from_lengths([[70], [70]]).cut
