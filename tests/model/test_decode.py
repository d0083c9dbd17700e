"""Decoding with shapes that never change is decoding token by token, compiled or not; nothing is compiled twice."""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import MagicMock, patch

import pytest
import torch
from torch import Tensor, nn

from llm import decode
from llm.config import build
from llm.decode import Decoding, Steady, slots_for
from llm.generate import Sampling, generate
from llm.mixers import MIXERS
from llm.model import Decoder, ModelConfig, model_kinds
from llm.state import State

HEADS = {"attention": 4, "gru": 2, "lstm": 2, "mamba2": 4, "mlstm": 2, "mlstm_paper": 2, "retention": 2, "slstm": 2, "titans": 2}
KINDS = {kind: {"kind": kind} | ({"heads": HEADS[kind]} if kind in HEADS else {}) for kind in MIXERS} | {
    "window": {"kind": "attention", "heads": 4, "kv_heads": 2, "window": 5},
    "mag": {"kind": "titans", "heads": 2, "variant": "mag", "window": 6, "persistent": 3},
    "mac": {"kind": "titans", "heads": 2, "variant": "mac", "chunk": 4, "persistent": 3},
}
BRAID = ["attention", "mlstm", "mamba"]
PROMPT, STEPS = 7, 9


def model_of(kinds: list[str], depth: int | None = None) -> Decoder:
    layers = {kind: {"mixer": KINDS[kind], "ffn": "swiglu"} for kind in kinds}
    settings = {"width": 16, "depth": depth or len(kinds), "vocab_size": 31, "layers": layers, "pattern": kinds}
    return Decoder.create(build(ModelConfig, settings, model_kinds("")), seed=0).eval()


@torch.no_grad()
def behind_a_prompt(model: Decoder) -> State:
    return model(torch.randint(31, (2, PROMPT), generator=torch.Generator().manual_seed(1))).state


@torch.no_grad()
def both(model: Decoder, decoding: Decoding, state: State, steps: int = STEPS) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits of each, over the same tokens."""
    tokens = torch.randint(31, (steps, 2), generator=torch.Generator().manual_seed(2))
    for tokens_B in tokens.to(state["position"].device):
        want, state = model.step(tokens_B, state)
        yield decoding(tokens_B).clone(), want


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(decode, "LEAST", 4)


@contextlib.contextmanager
def compiling(**settings: Any) -> Iterator[None]:
    """Afresh, and what it changes is undone. settings: of `nn.Module.compile`."""
    true = nn.Module.compile
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with (
        torch._dynamo.config.patch(recompile_limit=8, error_on_recompile=False),
        patch.object(nn.Module, "compile", lambda block, **own: true(block, **own, **settings)),
    ):
        yield


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("kind", KINDS)
def test_free_slots_change_nothing(kind):
    model = model_of([kind]).double()
    state = behind_a_prompt(model)
    before = {name: x.clone() for name, x in state.items()}
    for got, want in both(model, Decoding(model, state, STEPS, compiled=False), state):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(x, before[name]) for name, x in state.items())


def test_caches_have_room_for_what_was_announced():
    model = model_of(["attention"])
    decoding = Decoding(model, behind_a_prompt(model), 9, compiled=False)
    assert decoding.state["layers.0.attention.k"].shape[1] == 16 == slots_for(PROMPT + 9)
    for _ in range(9):
        decoding(torch.zeros(2, dtype=torch.long))
    with pytest.raises(AssertionError, match="more tokens than were announced"):
        decoding(torch.zeros(2, dtype=torch.long))


def newest_lost(self, x_BTD, state, *rest):
    y_BTD, new = self.block(x_BTD, state, *rest)
    return y_BTD, {name: x if x.shape == state[name].shape else x[:, :-1] for name, x in new.items()}


def test_a_planted_fault_is_seen():
    model = model_of(["attention"]).double()
    state = behind_a_prompt(model)
    with patch.object(Steady, "forward", newest_lost):
        different = [(got - want).abs().max() for got, want in both(model, Decoding(model, state, STEPS, compiled=False), state)]
    assert max(different) > 1e-3


def test_a_graph_is_captured_behind_its_warm_up_and_replayed():
    """The order of calls alone: stand-ins for CUDA's run what they would have recorded."""
    model = model_of(BRAID).double()
    state = behind_a_prompt(model)
    decoding = Decoding(model, state, STEPS, compiled=False)
    decoding.captures = True
    cuda = {name: MagicMock() for name in ("Stream", "current_stream", "CUDAGraph")}
    cuda["CUDAGraph"].return_value.replay = lambda: decoding.logits_BZ.copy_(decoding._advance())
    cuda |= dict.fromkeys(("stream", "graph"), lambda *_: contextlib.nullcontext())
    with patch.multiple(torch.cuda, **cuda):
        for got, want in both(model, decoding, state):
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    assert cuda["CUDAGraph"].call_count == 1


def test_no_token_is_compiled_anew_and_layers_share():
    """Each kind is one graph; and generated ids are the same. (Traced as for Inductor, and then run as it is.)"""
    model = model_of(["attention", "mamba"], depth=4)
    state = behind_a_prompt(model)
    with compiling(backend="eager"):
        decoding = Decoding(model, state, STEPS)
        for got, want in both(model, decoding, state):
            torch.testing.assert_close(got, want)
            assert graphs() == 2
        sampling = Sampling(tokens=STEPS, temperature=0)
        assert list(generate(model, [3, 4, 5], sampling, compiled=True)) == list(generate(model, [3, 4, 5], sampling))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_one_graph_of_one_shape(kind):
    """Nothing waits for the device, which would break it: so it can be captured."""
    model = model_of([kind])
    state = behind_a_prompt(model)
    with compiling(backend="eager"):
        for got, want in both(model, Decoding(model, state, STEPS), state):
            torch.testing.assert_close(got, want)
    assert graphs() == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kinds", [["attention"], ["mlstm"], BRAID], ids="-".join)
def test_compiled_steps_are_as_exact(kinds, dtype):
    """Against float64: within twice the error of PyTorch's own steps."""
    exact, model = model_of(kinds).double(), model_of(kinds).to(dtype)
    exact.load_state_dict(model.state_dict())
    state, exact_state = behind_a_prompt(model), behind_a_prompt(exact)
    with compiling():
        pairs = list(both(model, Decoding(model, state, STEPS), state))
        assert graphs() == len(kinds)
    truth = [want for want, _ in both(exact, Decoding(exact, exact_state, STEPS, compiled=False), exact_state)]
    ours, plain = (torch.stack([pair[side] for pair in pairs]).double() - torch.stack(truth) for side in (0, 1))
    assert ours.norm() <= 2 * plain.norm() + 1e-6


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_a_replayed_graph_is_the_step():
    model = model_of(BRAID)
    state = {name: x.cuda() for name, x in behind_a_prompt(model).items()}
    model.cuda()
    with compiling():
        for got, want in both(model, Decoding(model, state, STEPS), state):
            torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)
