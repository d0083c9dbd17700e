"""`torch.compile` sees each kind of layer as one graph: a block's PyTorch forms do not go back to Python, but where it is known."""

from unittest.mock import patch

import pytest
import torch

from llm.block import Block
from llm.docs import Docs
from llm.ops import loops
from tests.paper.kinds import KINDS, TOKENS, model

T = 64
SMALL = {"heads": 4, "kv_heads": 2, "window": 9}
MASKS = "masks.py"  # made again in the backward pass rather than kept, by autograd's hooks, which Dynamo does not trace
# where a kind's graph breaks over packed documents
KNOWN = {
    "attention": {MASKS},
    "titans, mag": {MASKS},
}


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
    with patch.dict(loops.LOOPS, clear=True):
        return torch._dynamo.explain(block)(torch.zeros(2, tokens, 64), None, docs, None)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", KINDS)
def test_a_block_is_one_graph(kind):
    found = explained(kind, Docs.from_lengths([[3, T - 3], [T]]))
    broken = [{frame.filename.rpartition("/")[2] for frame in reason.user_stack} for reason in found.break_reasons]
    # also where it no longer breaks, so that the list stays true
    known = KNOWN.get(kind, set())
    assert all(files & known for files in broken), [str(reason.reason) for reason in found.break_reasons]
    assert {place for place in known if any(place in files for files in broken)} == known


@pytest.mark.timeout(300)
def test_attention_over_rows_is_one_graph():
    assert explained("attention", None).graph_break_count == 0
