"""The whole decoder: state, documents, loss, initial values, cost."""

from unittest.mock import patch

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from llm.config import build
from llm.cost import model_cost
from llm.docs import Docs
from llm.errors import ConfigError
from llm.init import parameter_roles
from llm.model import Decoder, ModelConfig, model_kinds
from llm.ops import loops

LAYERS = {
    "r": {"mixer": {"kind": "retention", "heads": 2}, "ffn": {"kind": "swiglu"}},
    "a": {"mixer": {"kind": "attention", "heads": 4, "kv_heads": 2, "window": 10}},
    "f": {"mixer": {"kind": "attention", "heads": 2}, "ffn": "swiglu"},
}


def config(**changes) -> ModelConfig:
    values = {"width": 16, "depth": 4, "vocab_size": 31, "layers": LAYERS, "pattern": ["r", "a", "f"], **changes}
    return build(ModelConfig, values, model_kinds(""))


def decoder(**changes) -> Decoder:
    return Decoder.create(config(**changes), seed=0).double()


TOKENS = torch.randint(31, (2, 140), generator=torch.Generator().manual_seed(0))
DOCS = Docs.from_lengths([[1, 62, 1, 66, 10], [70, 70]])


def test_carrying_the_state_is_one_pass():
    model = decoder()
    whole = model(TOKENS, None, DOCS)
    state, parts = None, []
    for part in (slice(0, 64), slice(64, 65), slice(65, 140)):
        out = model(TOKENS[:, part], state, DOCS[part])
        state = out.state
        parts.append(out.logits)
    torch.testing.assert_close(torch.cat(parts, 1), whole.logits)
    assert state.keys() == whole.state.keys() == model.state_spec().keys() == model.init_state(2).keys()


def test_steps_are_one_pass():
    model = decoder()
    whole = model(TOKENS, None, DOCS).logits
    state, logits = None, []
    with torch.no_grad():
        for t in range(140):
            out, state = model.step(TOKENS[:, t], state, DOCS.starts_BT[:, t])
            logits.append(out)
    torch.testing.assert_close(torch.stack(logits, 1), whole)


def test_loss_is_the_sum_over_scored_labels():
    model = decoder()
    labels = TOKENS.roll(-1, 1).clone()
    labels[:, -1] = -100
    out = model(TOKENS, None, DOCS, labels)
    want = F.cross_entropy(model(TOKENS, None, DOCS).logits.flatten(0, 1), labels.flatten(), reduction="sum", ignore_index=-100)
    torch.testing.assert_close(out.loss_sum, want)
    assert out.logits is None


def test_checkpointed_activations_give_the_same_gradients():
    gradients = []
    for checkpointed in (False, True):
        model = decoder()
        model.checkpoint_activations = checkpointed
        model(TOKENS, None, DOCS, TOKENS).loss_sum.backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("tied", [True, False])
def test_initial_values_depend_on_seed_and_name_alone(tied):
    a, b, c = (Decoder.create(config(tie_embeddings=tied, pattern=["r"], layers={"r": LAYERS["r"]}), seed=s) for s in (0, 0, 1))
    deeper = Decoder.create(config(tie_embeddings=tied, depth=6), seed=0)
    for (name, p), q, r in zip(a.named_parameters(), b.parameters(), c.parameters(), strict=True):
        assert torch.isfinite(p).all()
        assert torch.equal(p, q)
        constant = parameter_roles(a)[name] in ("norm", "bias")
        assert torch.equal(p, r) == constant
    assert torch.equal(a.embedding, deeper.embedding)


def test_first_loss_is_near_that_of_guessing():
    model = Decoder.create(config(vocab_size=1000), seed=0)
    tokens = torch.randint(1000, (4, 64), generator=torch.Generator().manual_seed(1))
    assert model(tokens, labels_BT=tokens.roll(-1, 1)).loss_sum.item() / tokens.numel() == pytest.approx(6.91, abs=0.3)


@pytest.mark.parametrize("tied", [True, False])
def test_cost_is_the_model_s(tied):
    """Parameters and state bytes exactly; FLOPs against a count while it runs, attention's pairs taken from the mask itself."""
    context = 128
    settings = config(tie_embeddings=tied)
    model, cost = Decoder.create(settings, seed=0), model_cost(settings, context)
    assert cost.parameters == sum(p.numel() for p in model.parameters())
    tokens = TOKENS[:, :context]
    with torch.no_grad():
        state = model(tokens, model.init_state(2)).state
    assert cost.state_bytes * 2 == sum(v.numel() * v.element_size() for v in state.values())
    no_attention = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda *_, **__: 0}
    counter = FlopCounterMode(display=False, custom_mapping=no_attention)
    # compiled loops make their products where no counter sees them
    with counter, torch.no_grad(), patch.dict(loops.LOOPS, clear=True):
        model(tokens)
    n = torch.arange(context)
    distance = n[:, None] - n
    attention = 0.0
    for block in model.blocks:
        mixer = block.mixer.config
        if mixer.kind == "attention":
            visible = (distance >= 0) & (distance < (mixer.window or context))
            attention += 2 * mixer.heads * 2 * (16 // mixer.heads) * visible.sum().item() / context
    assert counter.get_total_flops() / tokens.numel() + attention == pytest.approx(cost.flops, rel=1e-9)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"pattern": ["r", "x"]}, "unknown layer 'x'"),
        ({"pattern": []}, "model.pattern is empty"),
        ({"depth": 0}, r"model.depth \(0\) must be at least 1"),
        ({"pattern": ["r"]}, "in none of the 4 layers"),
        (
            {"layers": {"r": {"mixer": {"kind": "retention", "heads": 3}}}, "pattern": ["r"]},
            r"heads \(3\) must divide model.width \(16\)",
        ),
        ({"layers": {"r": {"mixer": {"kind": "attention", "heads": 4, "kv_heads": 3}}}, "pattern": ["r"]}, "use a divisor of 4"),
        ({"layers": {"r": {"mixer": {"kind": "attention", "heads": 16}}}, "pattern": ["r"]}, "even head_dim"),
        ({"layers": {"r": {"mixer": {"kind": "attention", "heads": 4, "window": 0}}}, "pattern": ["r"]}, "counts the token itself"),
        ({"layers": {"r": {"mixer": {"kind": "retenton", "heads": 4}}}, "pattern": ["r"]}, "did you mean 'retention'"),
    ],
)
def test_what_a_user_can_get_wrong(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        config(**changes).check()
