"""Our kernel of Titans' memory at sizes that fill no block, planted faults in what it is given, and fla's recurrences beside it."""

from unittest.mock import patch

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from llm.errors import ConfigError
from llm.ops import dispatch, kernels
from llm.ops.memory import kernel_triton, naive
from llm.ops.memory.kernel import HANDED_ON
from llm.ops.memory.naive import Memory
from tests.kernels.cases import B, Case, H, cast, differences, error, flat, gradients, leaves_of, memory_streams, run, stretch
from tests.kernels.triton_cases import CASES

TITANS = next(case for case in CASES if case.family == "memory")
# more tokens in a chunk than in a product, widths that are no powers of 2, one chunk, chunks of one token
SIZES = [(24, 40, 100, 130), (16, 16, 16, 10), (20, 16, 1, 5)]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_any_size_is_the_definition(sizes, documents):
    K, V, chunk, tokens = sizes
    case = Case("", "memory", "triton", lambda T: memory_streams(T, K, V, chunk), {"chunk": chunk}, tokens=tokens)
    found, _ = differences(case, torch.float32, documents)
    assert max(found.values()) <= 2e-5, found


def test_a_fresh_row_begins_with_the_initial_weights():
    torch.manual_seed(0)
    streams = TITANS.streams(40)
    initial = streams["initial"][0].expand(B, -1, -1, -1)
    given = streams | {"state": Memory((initial,), (initial,), (torch.zeros_like(initial),))}
    low = {name: tree_map(torch.Tensor.float, x) for name, x in given.items()}
    got = run(TITANS, low, stretch(TITANS, None, fresh=True, behind=0, tokens=40))
    want = flat(naive.memory(*given.values(), None, chunk=16))
    assert all(error(a, b) <= 2e-5 for a, b in zip(got, want, strict=True))


class Launches(TorchDispatchMode):
    """How many operations that are more than a view or an allocation PyTorch does: on a GPU each is a kernel's launch."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        returns = function._schema.returns
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in returns)
        self.count += not is_view and "empty" not in function.name() and function is not torch.ops.aten.detach.default
        return function(*args, **(kwargs or {}))


def launches(route: str, chunks: int) -> int:
    """Of a forward and a backward pass, with documents."""
    case = Case("", "memory", route, lambda T: memory_streams(T, 16, 16, 16), {"chunk": 16}, tokens=16 * chunks)
    streams = cast(case, case.streams(case.tokens), torch.float32)
    at = stretch(case, case.starts())
    launch, ours = kernel_triton._launch, 0

    def launched(*given):
        # the interpreter copies what it is given
        nonlocal ours
        before, ours = made.count, ours + 1
        launch(*given)
        made.count = before + 1

    with Launches() as made, patch.object(kernel_triton, "_launch", launched):
        gradients(run(case, streams, at), list(leaves_of(streams).values()))
    assert ours == (2 if route == "triton" else 0)
    return made.count


@pytest.mark.timeout(300)
def test_launches_do_not_grow_with_chunks():
    """PyTorch's form launches more at each; figures: docs/kernels.md."""
    (few, many), (plain, most) = ([launches(route, n) for n in (8, 64)] for route in ("triton", "torch"))
    print(f"launches at 8 and 64 chunks of tokens: {few} and {many} by the kernel, {plain} and {most} in PyTorch")
    assert few == many < plain / 2
    assert most > 4 * plain


def swapped(op, k, v, step, to_weights, to_momentum, *rest):
    return op(k, v, step, to_momentum, to_weights, *rest)


def merged(op, *given):
    """No document begins: what opens a chunk only opens it."""
    return op(*given[:8], given[8].clamp(max=1), *given[9:])


def unopened(op, *given):
    """Errors at the weights that the first chunk started from."""
    return op(*given[:8], given[8] * (given[8] == 2), *given[9:])


def stale(op, *given):
    return op(*given[:10], *(x.flip(0) for x in given[10:]))


def faded(op, *given):
    """The momentum that a chunk finds does not reach the weights."""
    return op(*given[:6], torch.zeros_like(given[6]), *given[7:])


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", [swapped, merged, unopened, stale, faded])
def test_a_planted_fault_is_seen(fault):
    op = kernels.entry(HANDED_ON)
    with patch.object(kernels, "entry", lambda name: lambda *given: fault(op, *given)):
        found, _ = differences(TITANS, torch.float32, documents=True)
    assert max(found.values()) > 1e-2


def test_a_memory_of_two_matrices_is_refused_by_name():
    streams = memory_streams(20)
    two = lambda x: (*x, x[0])  # noqa: E731
    streams |= {"initial": two(streams["initial"]), "state": Memory(*map(two, streams["state"]))}
    given, at = [tree_map(torch.Tensor.float, x) for x in streams.values()], stretch(TITANS, None, tokens=20)
    with kernels.using(memory="triton"), pytest.raises(ConfigError, match="a memory of one matrix, not of 2"):
        dispatch.run("memory", 20, *given, at=at, chunk=16)
    with kernels.using(memory="auto"):
        got = flat(dispatch.run("memory", 20, *given, at=at, chunk=16))
    want = flat(naive.memory(*streams.values(), at.phase_BT, chunk=16))
    assert all(error(a, b) <= 2e-5 for a, b in zip(got, want, strict=True))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("chunk", [1, 16])
def test_flas_delta_rules_are_chunks_of_one_token(chunk):
    """With momentum, and, where it is 0, the gated rule, which decays before the error and not after it: so shifted by a token.

    At any longer chunk, whose errors are those of its first weights, they are another model: why they are no routes.
    """
    from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
    from fla.ops.momentum_delta_rule import recurrent_momentum_delta_rule_ref

    torch.manual_seed(0)
    streams = memory_streams(40)
    q, k, v, keep, momentum, step, (initial,), _ = streams.values()
    ones, W = torch.ones_like(step), initial.expand(B, H, *initial.shape[1:])
    state = Memory((W,), (W,), (torch.zeros_like(W),))

    def ours(momentum):
        return naive.memory(q, k, v, keep, momentum, step, (initial,), state, None, chunk=chunk)

    theirs, after = recurrent_momentum_delta_rule_ref(
        q, k, v, keep, momentum, k, ones, 2 * step, 1.0, W, torch.zeros_like(W), output_final_state=True
    )
    (y, final), near = ours(momentum), 1e-5
    pairs = [(y, theirs), (final.weights[0], after[0]), (-final.momentum[0], after[1])]
    before = F.pad(keep[:, :-1], (0, 0, 1, 0))
    y, final = ours(torch.full_like(momentum, -1e4))
    theirs, after = naive_recurrent_gated_delta_rule(
        q, k, v, 2 * step / keep.exp(), before, scale=1.0, initial_state=W, output_final_state=True
    )
    pairs += [(y, theirs * keep.exp()[..., None]), (final.weights[0], after * keep[:, -1].exp()[..., None, None])]
    assert all((error(a, b) <= near) == (chunk == 1) for a, b in pairs), [error(a, b) for a, b in pairs]
