"""Outside of training, ranks read a sequence together as one does: logits, states, generated text; whatever the length."""

from typing import Any

import pytest
import torch

from llm.config import build
from llm.docs import Docs
from llm.generate import Sampling, generate
from llm.model import Decoder, ModelConfig, model_kinds
from llm.parallel import Ranks
from llm.split import SplitDecoder
from llm.testing import run_ranks

pytestmark = [pytest.mark.multirank, pytest.mark.timeout(200)]
VOCABULARY, T = 61, 53
LAYERS = {
    "m": {"mixer": {"kind": "mamba2", "heads": 4, "state": 8}},
    "a": {"mixer": {"kind": "attention", "heads": 4, "kv_heads": 2}},
    "w": {"mixer": {"kind": "attention", "heads": 4, "window": 9}},
    "x": {"mixer": {"kind": "mlstm", "heads": 2}},
    "s": {"mixer": {"kind": "slstm", "heads": 1}},
    "t": {"mixer": {"kind": "titans", "heads": 2, "chunk": 16}},
}


def decoder() -> Decoder:
    layers = {name: {**layer, "ffn": {"kind": "none"}} for name, layer in LAYERS.items()}
    values = {"width": 16, "depth": len(layers), "vocab_size": VOCABULARY, "layers": layers, "pattern": list(layers)}
    return Decoder.create(build(ModelConfig, values, model_kinds("")), seed=0).double()


def readings(model: Any) -> dict[str, Any]:
    """Logits, nats and states: packed and not, window after window, a tail that no number of ranks divides, few tokens."""
    tokens = torch.randint(VOCABULARY, (2, T), generator=torch.Generator().manual_seed(1))
    starts = torch.zeros(2, T, dtype=torch.bool)
    starts[0, [0, 20, 27]] = starts[1, 31] = True
    found: dict[str, Any] = {}
    with torch.no_grad():
        for name, docs in (("packed", Docs(starts)), ("one document", None)):
            out = model(tokens, None, docs)
            found |= {name: out.logits, **{f"{name} {key}": value for key, value in out.state.items()}}
        state, parts = None, []
        for first, stop in ((0, 24), (24, 50), (50, 53)):
            out = model(tokens[:, first:stop], state, Docs(starts[:, first:stop]))
            parts.append(out.logits)
            state = out.state
        found["windows"] = torch.cat(parts, 1)
        for length in (1, 2, 52, 53):
            found[f"last of {length}"] = model(tokens[:, :length], last_only=True).logits
    return found


def written(model: Any) -> list[int]:
    prompt = torch.randint(VOCABULARY, (41,), generator=torch.Generator().manual_seed(2)).tolist()
    return list(generate(model, prompt, Sampling(tokens=12, temperature=0.9)))


def together(rank: int, size: int) -> tuple[dict[str, torch.Tensor], list[int]]:
    split = SplitDecoder(decoder(), Ranks(rank, size))
    return readings(split), written(split)


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_read_as_one_does(size: int) -> None:
    alone = decoder()
    expected = readings(alone)
    assert torch.equal(expected["packed"], readings(alone)["packed"])
    torch.testing.assert_close(expected["windows"], expected["packed"], rtol=1e-9, atol=1e-11)
    for rank, (found, text) in enumerate(run_ranks(together, size, size, timeout=150)):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].dtype == value.dtype
            torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}")
        # the first rank goes on alone
        assert text == (written(alone) if rank == 0 else [])
