"""The laws that every mixer keeps, in float64, on documents chosen to bite. A law raises AssertionError where it is broken.

Each takes a function that makes the mixer; none knows which mixer it is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from llm.docs import Docs
from llm.init import ROLES, initialise, parameter_roles
from llm.mixers import MIXERS, Mixer
from llm.ops import blockwise, loops
from llm.state import State

WIDTH = 8
# Three chunks of the chunked ops and two tokens more.
TOKENS = 3 * 64 + 2
PREFIX = 70
# Chunk offsets 0, 1 and C-1, adjacent starts, one-token documents, also as the last; rows that differ; row 1 continues its
# incoming document.
STARTS = ([0, 1, 63, 64, 128, 129, 191], [5, 65, 127, 130, 193])
SPLITS = ([1], [63], [64], [65, 66], [100, 128, 193])
CLOSE = {"rtol": 1e-9, "atol": 1e-11}


@dataclass(frozen=True)
class Case:
    """A kind of mixer with its settings."""

    kind: str
    settings: tuple[tuple[str, Any], ...]

    def config(self) -> Any:
        return MIXERS[self.kind][0](**dict(self.settings))

    def mixer(self) -> Mixer:
        """In float64, with every parameter away from its start, where norms are 1 and biases 0."""
        with torch.device("meta"):
            mixer = MIXERS[self.kind][1](self.config(), WIDTH)
        mixer = mixer.to_empty(device="cpu").double()
        initialise(mixer, seed=0, depth=1)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in mixer.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        return mixer


def streams(seed: int = 0, tokens: int = TOKENS) -> Tensor:
    return torch.randn(2, tokens, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def documents() -> Docs:
    starts = torch.zeros(2, TOKENS, dtype=torch.bool)
    for row, positions in enumerate(STARTS):
        starts[row, positions] = True
    return Docs(starts)


def carried(mixer: Mixer, seed: int = 7, tokens: int = PREFIX, start: int = 0) -> State:
    """A state that lies behind real tokens, of a document that began at `start`."""
    starts = torch.zeros(2, tokens, dtype=torch.bool)
    starts[:, start] = True
    with torch.no_grad():
        return mixer(streams(seed, tokens), None, Docs(starts))[1]


def leaves(state: State) -> State:
    """The state with its floating-point entries as leaves that want gradients."""
    return {k: v.detach().clone().requires_grad_(v.is_floating_point()) for k, v in state.items()}


def same(a: State, b: State) -> None:
    assert a.keys() == b.keys(), f"{sorted(a)} against {sorted(b)}"
    for key in a:
        torch.testing.assert_close(a[key], b[key], msg=lambda text, key=key: f"state {key}: {text}", **CLOSE)


def splitting_changes_nothing(case: Case) -> None:
    """Any split of a sequence, with the state carried, is one pass — also with documents and from a carried state."""
    mixer, x, docs = case.mixer(), streams(), documents()
    for start, d in ((None, None), (None, docs), (carried(mixer), docs)):
        whole, final = mixer(x, start, d)
        for cuts in SPLITS:
            state, parts = start, []
            for first, last in zip([0, *cuts], [*cuts, TOKENS], strict=True):
                y, state = mixer(x[:, first:last], state, None if d is None else d[first:last])
                parts.append(y)
            torch.testing.assert_close(torch.cat(parts, 1), whole, **CLOSE)
            same(state, final)


def steps_are_one_pass(case: Case) -> None:
    mixer, x, docs = case.mixer(), streams(), documents()
    with torch.no_grad():
        whole, final = mixer(x, carried(mixer), docs)
        state, outputs = carried(mixer), []
        for t in range(TOKENS):
            y, state = mixer.step(x[:, t], state, docs.starts_BT[:, t])
            outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, 1), whole, **CLOSE)
    same(state, final)


def a_packed_document_is_the_document_alone(case: Case) -> None:
    """In values and in the gradients of inputs and parameters."""
    mixer, docs = case.mixer(), documents()
    x = streams().requires_grad_()
    y, _ = mixer(x, carried(mixer), docs)
    weight = streams(3)
    for row, positions in enumerate(STARTS):
        for first, last in zip(positions, [*positions[1:], TOKENS], strict=True):
            alone = x.detach()[row : row + 1, first:last].clone().requires_grad_()
            y_alone, _ = mixer(alone)
            torch.testing.assert_close(y[row : row + 1, first:last], y_alone, **CLOSE)
            of_interest = weight[row : row + 1, first:last]
            inputs = [x, *mixer.parameters()]
            packed = torch.autograd.grad((y[row : row + 1, first:last] * of_interest).sum(), inputs, retain_graph=True)
            single = torch.autograd.grad((y_alone * of_interest).sum(), [alone, *mixer.parameters()])
            torch.testing.assert_close(packed[0][row : row + 1, first:last], single[0], **CLOSE)
            for a, b in zip(packed[1:], single[1:], strict=True):
                torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


def nothing_before_a_start_touches_it(case: Case) -> None:
    """Exactly, bit for bit: other tokens before it and another state behind them leave values and gradients as they are."""
    mixer, docs, weight = case.mixer(), documents(), streams(3)
    for row, positions in enumerate(STARTS):
        for start in positions:
            results = []
            for seed, began, behind in ((0, 0, 0), (11, 30, 13)):
                x = streams().clone()
                x[row, :start] = streams(seed)[row, :start]
                x.requires_grad_()
                state = leaves(carried(mixer, seed, start=began))
                state["position"] = state["position"] + behind
                y, final = mixer(x, state, docs)
                after, _ = mixer(streams(5, 3), final)
                loss = (y[row, start:] * weight[row, start:]).sum() + after[row].sum()
                entries = [v for v in state.values() if v.requires_grad]
                dx, *rest = torch.autograd.grad(loss, [x, *entries, *mixer.parameters()], allow_unused=True)
                assert dx[row, :start].count_nonzero() == 0, f"a gradient crosses the start at {start}"
                for gradient in rest[: len(entries)]:
                    crosses = gradient is not None and gradient[row].count_nonzero()
                    assert not crosses, f"the state's gradient crosses the start at {start}"
                results.append((y[row, start:], after[row], dx[row, start:], *rest[len(entries) :]))
            for a, b in zip(*results, strict=True):
                assert torch.equal(a, b), f"what lies before the start at {start} changes what follows by {(a - b).abs().max():.1e}"


def nothing_later_touches_earlier(case: Case) -> None:
    """Causality, exactly, in values and gradients."""
    mixer, docs = case.mixer(), documents()
    for t in (1, 63, 64, 65, 130, 193):
        x = streams()
        other = torch.cat([x[:, :t], streams(12)[:, t:]], 1)
        x.requires_grad_()
        y, _ = mixer(x, carried(mixer), docs)
        assert torch.equal(y[:, :t], mixer(other, carried(mixer), docs)[0][:, :t]), f"a token after {t} changes an earlier output"
        (dx,) = torch.autograd.grad(y[:, :t].sum(), x)
        assert dx[:, t:].count_nonzero() == 0, f"a gradient flows from before {t} to after it"


def gradients_are_right(case: Case) -> None:
    """gradcheck of outputs and final state in inputs, initial state and parameters, over a chunk border and a start."""
    mixer = case.mixer()
    tokens = 67
    docs = documents()[:tokens]
    state = leaves(carried(mixer, tokens=3))
    keys = [k for k, v in state.items() if v.requires_grad]
    names = [name for name, _ in mixer.named_parameters()]

    def run(x: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = {**state, **dict(zip(keys, tensors, strict=False))}
        parameters = dict(zip(names, tensors[len(keys) :], strict=True))
        y, final = torch.func.functional_call(mixer, parameters, (x, given, docs))
        return (y, *(v for v in final.values() if v.is_floating_point()))

    inputs = [streams(tokens=tokens).requires_grad_(), *(state[k] for k in keys), *mixer.parameters()]
    right = torch.autograd.gradcheck(run, inputs, fast_mode=True, atol=1e-6, rtol=1e-4, raise_exception=False)
    assert right, "analytical and numerical gradients differ"


def nothing_passed_in_is_changed(case: Case) -> None:
    mixer, x, docs = case.mixer(), streams(), documents()
    state = carried(mixer)
    before = {k: v.clone() for k, v in state.items()}
    starts, x_before = docs.starts_BT.clone(), x.clone()
    y, _ = mixer(x.requires_grad_(), state, docs)
    y.sum().backward()
    mixer.step(x.detach()[:, 0], state, starts[:, 0])
    mixer.step(x.detach()[:, 0], state)
    assert torch.equal(x, x_before)
    assert torch.equal(docs.starts_BT, starts)
    for key in before:
        assert torch.equal(state[key], before[key]), f"state {key} was changed in place"


def rows_do_not_touch_each_other(case: Case) -> None:
    mixer, x, docs = case.mixer(), streams(), documents()
    state = leaves(carried(mixer))
    x.requires_grad_()
    y, final = mixer(x, state, docs)
    other = torch.cat([x[:1], streams(9)[1:]]).detach()
    assert torch.equal(y[0], mixer(other, state, docs)[0][0])
    loss = y[0].sum() + sum(v[0].sum() for v in final.values() if v.is_floating_point())
    entries = [v for v in state.values() if v.requires_grad]
    for gradient in torch.autograd.grad(loss, [x, *entries], allow_unused=True):
        assert gradient is None or gradient[1].count_nonzero() == 0, "row 1 has a gradient from row 0"


def state_is_as_specified(case: Case) -> None:
    """Names, shapes and dtypes of the initial state and of the one after tokens; float32 recurrences under bfloat16 streams."""
    for dtype in (torch.float32, torch.bfloat16):
        mixer = case.mixer().to(dtype)
        spec = mixer.full_state_spec()
        initial = mixer.init_state(2, dtype=dtype)
        with torch.no_grad():
            _, after = mixer(streams(tokens=5).to(dtype), initial)
        for state, tokens in ((initial, 0), (after, 5)):
            assert state.keys() == spec.keys()
            for key, entry in spec.items():
                first = [entry.shape[0] + tokens, *entry.shape[1:]] if entry.grows else list(entry.shape)
                assert list(state[key].shape) == [2, *first], f"{key} is {list(state[key].shape)} after {tokens} tokens"
                assert state[key].dtype == (entry.dtype or dtype), f"{key} is {state[key].dtype}"


def bfloat16_streams_with_pinned_parameters_work(case: Case) -> None:
    """As a run in bfloat16 holds them: matrices in bfloat16, what is pinned in float32; outputs near those in float64."""
    exact, mixer = case.mixer(), case.mixer().to(torch.bfloat16)
    for name, role in parameter_roles(mixer).items():
        parameter = mixer.get_parameter(name)
        parameter.data = exact.get_parameter(name).detach().to(torch.float32 if ROLES[role].float32 else torch.bfloat16)
    for docs in (None, documents()):
        y, final = mixer(streams().bfloat16(), None, docs)
        assert y.dtype == torch.bfloat16
        y.float().sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in mixer.parameters())
        for key, entry in mixer.full_state_spec().items():
            assert final[key].dtype == (entry.dtype or torch.bfloat16), f"{key} is {final[key].dtype}"
        want, _ = exact(streams(), None, docs)
        error = (y.double() - want).norm() / want.norm()
        assert error <= 0.1, f"bfloat16 differs by {error:.1e}"
        _, after = mixer.step(streams().bfloat16()[:, 0], final)
        assert {key: x.dtype for key, x in after.items()} == {key: x.dtype for key, x in final.items()}


def starting_fresh_is_starting_from_the_initial_state(case: Case) -> None:
    mixer, x = case.mixer(), streams()
    for docs in (None, documents()):
        y, final = mixer(x, None, docs)
        y_given, final_given = mixer(x, mixer.init_state(2, dtype=torch.float64), docs)
        torch.testing.assert_close(y, y_given, **CLOSE)
        same(final, final_given)


def it_builds_on_meta_and_every_parameter_has_a_role(case: Case) -> None:
    with torch.device("meta"):
        mixer = MIXERS[case.kind][1](case.config(), WIDTH)
    tensors = [*mixer.parameters(), *mixer.buffers()]
    assert tensors
    assert all(p.is_meta for p in tensors)
    assert set(parameter_roles(mixer)) == {name for name, _ in mixer.named_parameters()}


def checkpointing_keeps_gradients(case: Case) -> None:
    mixer, docs = case.mixer(), documents()
    results = []
    for run in (lambda *a: mixer(*a), lambda *a: checkpoint(mixer, *a, use_reentrant=False)):
        x, state = streams().requires_grad_(), leaves(carried(mixer))
        y, final = run(x, state, docs)
        loss = (y * streams(3)).sum() + sum(v.sum() for v in final.values() if v.is_floating_point())
        entries = [v for v in state.values() if v.requires_grad]
        results.append(torch.autograd.grad(loss, [x, *entries, *mixer.parameters()]))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def cost_is_the_module_s(case: Case) -> None:
    """Parameters and state bytes exactly; FLOPs as counted while it runs, where attention may save the masked pairs."""
    context = 3 * 64
    mixer = case.mixer().float()
    cost = case.config().cost(WIDTH, context, bytes_per_value=4)
    assert cost.parameters == sum(p.numel() for p in mixer.parameters())
    with torch.no_grad():
        state = mixer(streams(tokens=context).float(), mixer.init_state(2))[1]
    state.pop("position")
    assert cost.state_bytes * 2 == sum(v.numel() * v.element_size() for v in state.values())
    without_attention, with_attention = (_flops_per_token(mixer, context, pairs) for pairs in (0, 1))
    assert 0.98 * without_attention <= cost.flops <= 1.02 * with_attention, (without_attention, cost.flops, with_attention)


def _flops_per_token(mixer: Mixer, context: int, pairs: int) -> float:
    """Counted over the matrix products of the PyTorch forms, without the zeros between joined blocks; each query-key pair of an
    attention counts `pairs` times."""

    def attend(q: list[int], k: list[int], v: list[int], *_: Any, **__: Any) -> int:
        return pairs * 2 * q[0] * q[1] * q[2] * k[2] * (q[3] + v[3])

    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attend})
    with counter, torch.no_grad(), patch.dict(loops.LOOPS, clear=True), patch.object(blockwise, "JOINED_CHANNELS", 1):
        mixer(streams(tokens=context).float())
    return counter.get_total_flops() / (2 * context)


LAWS: tuple[Callable[[Case], None], ...] = (
    splitting_changes_nothing,
    steps_are_one_pass,
    a_packed_document_is_the_document_alone,
    nothing_before_a_start_touches_it,
    nothing_later_touches_earlier,
    gradients_are_right,
    nothing_passed_in_is_changed,
    rows_do_not_touch_each_other,
    state_is_as_specified,
    bfloat16_streams_with_pinned_parameters_work,
    starting_fresh_is_starting_from_the_initial_state,
    it_builds_on_meta_and_every_parameter_has_a_role,
    checkpointing_keeps_gradients,
    cost_is_the_module_s,
)
