"""Whole training steps as on an H100, without values: no one waits for the device, and every kernel is called as its package asks.

Each kind of layer, and a 7B braid of five kinds: forward, loss, backward, clipping, AdamW.
"""

import importlib
import inspect
from dataclasses import fields
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from benchmarks.gpu import FULL
from benchmarks.gpu_sides import THEIRS
from llm.docs import Docs
from llm.model import Decoder, ModelConfig
from llm.ops import kernels
from llm.ops.attention import kernel as attention_kernel
from llm.ops.conv.kernel import FLA as FLA_CONV
from llm.ops.linear.kernel import CHUNK_SCAN, GLA
from llm.train.precision import cast_model
from tests.paper.calls import LAWS, recorded
from tests.paper.gpu import DEVICE, Host, register, without_values
from tests.paper.kinds import FIVE, KINDS, TOKENS, model

FAMILIES = tuple(field.name for field in fields(kernels.KernelsConfig))
# no mixer asks for it, or only by name
NOT_BY_AUTO = {GLA, FLA_CONV}


def on_device(starts: Tensor) -> Docs:
    """Boundaries that are known in host memory, as a batch's are."""
    host = starts.as_subclass(Host)
    return Docs(torch.empty(starts.shape, dtype=torch.bool, device=DEVICE), host)


def step(config: ModelConfig, T: int, documents: bool, carried: bool) -> tuple[int, list[str]]:
    """(parameters, what waited for the device) of a training step on two rows."""
    starts = Docs.from_lengths([[1, T // 3, T - 1 - T // 3], [T // 2, T // 2]]).starts_BT
    nowhere = torch.zeros(2, T, dtype=torch.bool)
    # a call without documents makes its own, of zeros in host memory
    with without_values() as crossings, patch.object(attention_kernel, "Docs", lambda _: on_device(nowhere)):
        with torch.device(DEVICE):
            decoder = Decoder(config)
        cast_model(decoder)
        parameters = list(decoder.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=1e-3, foreach=True)
        tokens = torch.empty(2, T, dtype=torch.long, device=DEVICE)
        state = decoder.init_state(2, DEVICE, torch.bfloat16) if carried else None
        out = decoder(tokens, state, on_device(starts) if documents else None, labels_BT=tokens, z_loss=1e-4)
        assert isinstance(out.loss_sum, Tensor)
        (out.loss_sum / tokens.numel()).backward()
        assert all(p.grad is not None for p in parameters)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        return sum(p.numel() for p in parameters), crossings.seen


@pytest.fixture(scope="module")
def called() -> dict[str, int]:
    register()
    return {}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("choice", ["auto", "torch"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_of_a_layer_waits_for_nothing(kind, choice, called):
    config = model(2048, 1, {"l": {"mixer": KINDS[kind], "ffn": {"kind": "swiglu"}}})
    for documents, carried in [(True, True), (True, False), (False, True), (False, False)]:
        with recorded() as seen, kernels.using(**dict.fromkeys(FAMILIES, choice)):
            _, waited = step(config, TOKENS.get(kind, 512), documents, carried)
        for name, times in seen.items():
            called[name] = called.get(name, 0) + times
        assert waited == []


def test_every_kernel_of_training_was_called(called):
    assert set(LAWS) - NOT_BY_AUTO <= set(called)


@pytest.mark.timeout(300)
def test_a_step_of_a_7B_braid_waits_for_nothing(called):
    with recorded() as seen:
        parameters, waited = step(model(4096, 35, FIVE), 4096, True, True)
    print(f"{parameters:,} parameters; calls of kernels: {seen}")
    assert 6.5e9 < parameters < 7.5e9
    assert waited == []


@pytest.mark.parametrize("kind", ["attention", "mamba", "mamba2"])
def test_layers_of_the_benchmark_are_built_as_their_packages_ask(kind):
    _, entry, settings = THEIRS[kind]
    inspect.signature(kernels.entry(entry)).bind(**settings(FULL, importlib.import_module))


def test_the_kernel_of_the_benchmarks_mlstm_is_there():
    assert kernels.entry("mlstm_kernels.torch:get_mlstm_kernel")("chunkwise--triton_xl_chunk")


def test_a_wait_and_a_wrong_call_are_seen(called):
    """Planted: a copy to the host, a value that is read, a tensor left in host memory, segments in int64."""
    with without_values() as crossings:
        x = torch.empty(4, 8, device=DEVICE)
        x.cpu()
        assert len(crossings.seen) == 1
        with pytest.raises(Exception, match="_local_scalar_dense"):
            x.sum().item()
        with pytest.raises(Exception, match="same device"):
            x + torch.ones(8)
        q = torch.empty(8, 2, 16, dtype=torch.bfloat16, device=DEVICE)
        cuts = torch.empty(3, dtype=torch.int64, device=DEVICE)
        with recorded(), pytest.raises(AssertionError, match="not int32"):
            kernels.entry(attention_kernel.VARLEN)(q, q, q, cuts, cuts, 4, 4, softmax_scale=1.0, causal=True)
        with recorded(), pytest.raises(TypeError, match="unexpected keyword"):
            kernels.entry(CHUNK_SCAN)(q, q, q, q, q, 128, state=q)
