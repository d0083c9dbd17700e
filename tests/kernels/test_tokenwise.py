"""Kernels of single tokens: no token touches another, inputs stay, planted faults are seen; and why fla's rotation is no route."""

from unittest.mock import patch

import pytest
import torch

from llm.ops import kernels
from llm.ops.tokenwise.kernel import GROUP_NORM, LOSS, LOSS_GRADIENT, RMS_NORM, ROTARY, SWIGLU
from tests.kernels.cases import Case, cast, differences, gradients, leaves_of, run, stretch
from tests.kernels.triton_cases import TOKENWISE

BY_NAME = {case.name: case for case in TOKENWISE}
MOVED = 5
# those with a value for each token
STREAMS = ("x", "gate", "hidden")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", [c for c in TOKENWISE if c.tokens > MOVED], ids=lambda case: case.name)
def test_no_token_touches_another(case: Case):
    """To the bit: outputs (the loss aside, which is their sum) and gradients of the others."""
    torch.manual_seed(0)
    streams, found = case.streams(case.tokens), []

    def rows(x):
        """One for each token, as the loss has them anyway."""
        return x if case.family == "cross_entropy" else x.flatten(0, 1)

    for factor in (1.0, 3.0):
        moved = {name: x.clone() if name in STREAMS else x for name, x in streams.items()}
        for name in set(STREAMS) & set(moved):
            rows(moved[name])[MOVED] *= factor
        leaves = cast(case, moved, torch.float32)
        outputs = run(case, leaves, stretch(case, None))[:1]
        each = gradients(outputs, [leaf for name, leaf in leaves_of(leaves).items() if name in STREAMS])
        found.append([rows(x) for x in (each if case.family == "cross_entropy" else [*each, *outputs])])
    others = torch.arange(len(found[0][0])) != MOVED
    assert all(torch.equal(a[others], b[others]) for a, b in zip(*found, strict=True))
    assert not all(torch.equal(a[MOVED], b[MOVED]) for a, b in zip(*found, strict=True))


@pytest.mark.timeout(300)
@pytest.mark.parametrize("case", TOKENWISE, ids=lambda case: case.name)
def test_inputs_stay_as_they_are(case: Case):
    torch.manual_seed(0)
    streams = cast(case, case.streams(case.tokens), torch.float32)
    before = {name: x.clone() for name, x in streams.items() if x is not None}
    gradients(run(case, streams, stretch(case, None))[:1], list(leaves_of(streams).values()))
    assert all(torch.equal(x, streams[name]) for name, x in before.items())


def without(name):
    return lambda op, *args, **settings: op(*args, **(settings | {name: None if name == "logit_softcapping" else 0.0}))


FAULTS = [
    ("RMSNorm", RMS_NORM, lambda op, x, weight, bias, eps: op(x, weight, bias, eps=0.1)),
    ("RMSNorm", RMS_NORM, lambda op, x, weight, bias, eps: op(x, weight * 0 + 1, bias, eps=eps)),
    ("norm of heads, bias", GROUP_NORM, lambda op, x, w, b, eps, num_groups: op(x, w.flip(0), b, eps=eps, num_groups=num_groups)),
    (
        "norm of heads",
        GROUP_NORM,
        lambda op, x, w, b, eps, num_groups: op(x, w, b, eps=eps, num_groups=num_groups, is_rms_norm=True),
    ),
    ("SwiGLU", SWIGLU, lambda op, gate, x: op(x, gate)),
    ("rotary", ROTARY, lambda op, x, cos, sin: op(x, sin, cos)),
    ("rotary", ROTARY, lambda op, x, cos, sin: op(x, cos.roll(1, 0), sin.roll(1, 0))),
    ("cross-entropy, cap, z-loss", LOSS, without("logit_softcapping")),
    ("cross-entropy, cap, z-loss", LOSS_GRADIENT, without("logit_softcapping")),
    ("cross-entropy, cap, z-loss", LOSS_GRADIENT, without("lse_square_scale")),
    ("cross-entropy", LOSS_GRADIENT, lambda op, *args, ignore_index, **rest: op(*args, ignore_index=-1, **rest)),
]


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("name", "entry", "fault"), FAULTS)
def test_a_planted_fault_is_seen(name, entry, fault):
    """Other constants, weights, tables and arguments; a cap, z-loss or ignored label that is lost."""
    true = kernels.entry
    faulty = lambda *args, **settings: fault(true(entry), *args, **settings)  # noqa: E731
    with patch.object(kernels, "entry", lambda asked: faulty if asked == entry else true(asked)):
        found, _ = differences(BY_NAME[name], torch.float32, documents=False)
    assert max(found.values()) > 1e-3, found


def test_flas_rotation_wants_a_table_as_narrow_as_the_stream():
    """Why it is no route: cosines in 8 bits of mantissa turn by other angles, and scores depend on more than distances."""
    rotate = kernels.entry("fla.modules.rotary:rotary_embedding")
    x, table = torch.randn(1, 4, 2, 8, dtype=torch.float16), torch.ones(4, 4)
    with pytest.raises(AssertionError, match="same dtype"):
        rotate(x, table, table)
