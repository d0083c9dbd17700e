"""Peers are imported without a trace: what `transformers` takes for installed, other tests find."""

import importlib.util
import sys

import pytest

from tests.peers import peers

MODULES = {
    "fla.ops.simple_gla.naive": "fla",
    "flashrnn.flashrnn.vanilla": "flashrnn",
    "mamba_ssm.ops.selective_scan_interface": "mamba_ssm",
    "mambapy.mamba": "mambapy",
    "mlstm_kernels.torch.chunkwise.native.fwbw": "mlstm_kernels",
    "titans_pytorch.neural_memory": "titans_pytorch",
    "xlstm.blocks.slstm.layer": "xlstm",
}


@pytest.mark.parametrize(("module", "package"), MODULES.items())
def test_a_peer_leaves_no_trace(module, package):
    assert peers.load(module) is peers.load(module)
    assert str(peers.FOLDER) not in sys.path
    assert package not in sys.modules
    assert importlib.util.find_spec(package) is None
    assert not set(peers.ABSENT) & set(sys.modules)


def test_transformers_sees_none():
    for module in MODULES:
        peers.load(module)
    from transformers.utils import import_utils

    assert not import_utils.is_mambapy_available()
    assert not import_utils.is_xlstm_available()
    assert not import_utils.is_flash_linear_attention_available()


def test_an_unknown_module_is_an_error():
    with pytest.raises(ModuleNotFoundError, match="no package nobody"):
        peers.load("nobody.knows")
