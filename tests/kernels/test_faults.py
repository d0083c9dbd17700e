"""Faults planted in calls of real kernels are seen by the comparison; calls of kernels in CUDA bind to the packages."""

import inspect
from unittest.mock import patch

import pytest
import torch

from llm.ops import kernels
from tests.kernels import cuda_forms
from tests.kernels.cases import Case, attention_streams, conv_streams, differences, run, scan_streams, stretch
from tests.kernels.triton_cases import CASES

SIMPLE_GLA = next(case for case in CASES if case.name == "one decay per head, simple GLA")


def swapped(op, q, k, *rest, **settings):
    return op(k, q, *rest, **settings)


def unscaled(op, *streams, scale, **settings):
    return op(*streams, scale=None if scale == 1 else 1.0, **settings)


def stale(op, *streams, initial_state, **settings):
    return op(*streams, initial_state=initial_state.flip(0), **settings)


def merged(op, *streams, cu_seqlens, cu_seqlens_cpu, initial_state, **settings):
    """Boundaries of documents dropped: rows alone."""
    tokens = streams[0].shape[1]
    ends = torch.tensor([0, tokens // 2, tokens], dtype=torch.int32)
    y, final = op(*streams, cu_seqlens=ends, initial_state=initial_state[:2], **settings)
    return y, final[[0] * (len(initial_state) - 1) + [1]]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", [swapped, unscaled, stale, merged])
def test_a_planted_fault_is_seen(fault):
    entry = kernels.entry
    with patch.object(kernels, "entry", lambda name: lambda *streams, **settings: fault(entry(name), *streams, **settings)):
        found, _ = differences(SIMPLE_GLA, torch.float32, documents=True)
    assert max(found.values()) > 1e-2


CUDA = [
    Case("flash", "attention", "flash", attention_streams(0), {"scale": 0.3}),
    Case("flash, cached", "attention", "flash", attention_streams(7), {"scale": 0.3, "window": 5}),
    Case("convolution", "conv", "causal_conv1d", conv_streams),
    Case("scan", "scan", "mamba_ssm", scan_streams),
]


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("case", CUDA, ids=lambda case: case.name)
def test_calls_of_cuda_kernels_bind_to_the_packages_signatures(case, documents):
    calls = []

    def recording(name):
        def called(*args, **settings):
            bound = inspect.signature(kernels_entry(name)).bind(*args, **settings)
            calls.append((name, list(bound.arguments)))
            return cuda_forms.FORMS[name](*args, **settings)

        return called

    kernels_entry = kernels.entry
    with cuda_forms.installed(**{name: recording(name) for name in cuda_forms.FORMS}):
        dtype = torch.float16 if case.route == "flash" else torch.float32
        streams = {n: x.to(dtype) if x.is_floating_point() else x for n, x in case.streams(case.tokens).items()}
        run(case, streams, stretch(case, case.starts() if documents else None))
    assert len(calls) == 1
    ours, theirs = (inspect.signature(f) for f in (cuda_forms.FORMS[calls[0][0]], kernels_entry(calls[0][0])))
    named = [n for n, p in ours.parameters.items() if p.kind is not p.VAR_KEYWORD]
    assert named == list(theirs.parameters)[: len(named)]
