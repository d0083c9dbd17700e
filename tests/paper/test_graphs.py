"""`torch.compile` sees each kind of layer as one graph: a block's PyTorch forms do not go back to Python."""

from unittest.mock import patch

import pytest
import torch

from llm.block import Block
from llm.docs import Docs
from llm.ops import kernels, loops
from llm.ops.kernels import KernelsConfig
from tests.paper.kinds import KINDS, TOKENS, model

T = 64
SMALL = {"heads": 4, "kv_heads": 2, "window": 9}


def explained(kind: str, docs: Docs | None):
    settings = {name: SMALL.get(name, value) for name, value in KINDS[kind].items()}
    block = Block(model(64, 1, {"l": {"mixer": settings, "ffn": {"kind": "swiglu"}}}).layers["l"], 64, 1e-6)
    tokens = 8 if kind in TOKENS else T
    if docs is not None:
        docs = docs[:tokens]
        # made once for all layers, before the first
        assert docs.id_BT.shape == docs.since_start_BT.shape
        assert docs.most_chunks(64, fresh=True)
    torch._dynamo.reset()
    # on a GPU with all packages: none of their kernels is traced
    with patch.dict(loops.LOOPS, clear=True), kernels.simulated((9, 0), KernelsConfig()) as calls:
        found = torch._dynamo.explain(block)(torch.zeros(2, tokens, 64), None, docs, None)
    return found, calls


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", KINDS)
def test_a_block_is_one_graph(kind):
    found, calls = explained(kind, Docs.from_lengths([[3, T - 3], [T]]))
    assert found.graph_break_count == 0, [str(reason.reason) for reason in found.break_reasons]
    assert not calls


@pytest.mark.timeout(300)
def test_attention_over_rows_is_one_graph():
    assert explained("attention", None)[0].graph_break_count == 0
