"""Maps are what layers do; time scales are what gates say."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from eval.models.braid import BraidModel
from eval.probes.layers import (
    LayersConfig,
    attention_maps,
    draw_lens,
    draw_maps,
    draw_timescales,
    logit_lens,
    read_tokens,
    timescales,
)
from eval.probes.watched import Watched, watched_layers
from llm.config import build
from llm.errors import ConfigError, DataError
from llm.model import Decoder, ModelConfig, model_kinds

MIXERS = {
    "retention": {"kind": "retention", "heads": 2},
    "mamba2": {"kind": "mamba2", "heads": 4, "state": 8},
    "mamba": {"kind": "mamba", "state": 4},
    "mlstm": {"kind": "mlstm", "heads": 2},
    "mlstm_paper": {"kind": "mlstm_paper", "heads": 2},
    "attention": {"kind": "attention", "heads": 4, "kv_heads": 2},
    "window": {"kind": "attention", "heads": 2, "window": 5, "soft_cap": 3.0},
}


def decoder_of(*names: str) -> Decoder:
    layers = {name: {"mixer": MIXERS[name], "ffn": "none"} for name in names}
    values = {"width": 16, "depth": len(names), "vocab_size": 300, "layers": layers, "pattern": list(names)}
    model = Decoder.create(build(ModelConfig, values, model_kinds("")), seed=1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return model


def test_maps_reproduce_every_layers_output():
    tokens = torch.randint(300, (2, 40), generator=torch.Generator().manual_seed(0))
    found = list(watched_layers(decoder_of(*MIXERS), tokens))
    assert [layer.split()[1] for layer, *_ in found] == list(MIXERS)
    for layer, seen, error in found:
        assert error < 1e-5, layer
        (of,) = seen.values()
        assert not of.map_BHTS.triu(1).any()
        assert of.map_BHTS.abs().sum() > 0
        if "attention" in layer or "window" in layer:
            torch.testing.assert_close(of.map_BHTS.sum(-1), torch.ones(of.map_BHTS.shape[:-1]))


def test_a_retention_map_is_the_papers():
    decoder = decoder_of("retention")
    mixer, x = decoder.blocks[0].mixer, torch.randn(1, 30, 16, generator=torch.Generator().manual_seed(0))
    watched = Watched(mixer, x)
    mixer.mix(x, watched)
    (seen,) = watched.seen.values()
    q, k = (proj(x).unflatten(-1, (2, 8)) for proj in (mixer.q_proj, mixer.k_proj))
    q, k = watched.rotary(q, k, theta=10000.0)
    gap = torch.arange(30)[:, None] - torch.arange(30)
    for head, gamma in enumerate((1 - 2**-5, 1 - 2**-6)):
        # eq. 5: D_nm = gamma^(n - m)
        decay = torch.where(gap >= 0, gamma ** gap.double(), 0)
        right = (q[0, :, head] @ k[0, :, head].T).double() * decay / 8**0.5
        torch.testing.assert_close(seen.map_BHTS[0, head].double(), right, rtol=1e-5, atol=1e-5)


def test_the_tasks_say_and_draw_it(subject):
    from matplotlib.figure import Figure

    model = BraidModel(decoder_of("retention", "mamba2", "attention"), subject.manifest().tokenizer_path)
    asked = replace(subject, model=model)
    maps = attention_maps(asked, LayersConfig(tokens=30))
    assert all(found["error"] < 1e-5 for found in maps.details["maps"])
    assert np.array(maps.details["maps"][0]["share"]).sum(-1) == pytest.approx(np.ones(30), abs=1e-3)
    scales = timescales(asked, LayersConfig(tokens=30))
    # -1 / log(1 - 2^-5) and -1 / log(1 - 2^-6) tokens
    assert scales.figures["layer 0 retention median timescale"].value == pytest.approx((31.497 + 63.498) / 2, rel=1e-4)
    assert [found["layer"] for found in scales.details["layers"]] == ["0 retention", "1 mamba2"]
    assert sum(scales.details["layers"][1]["counts"]) == 4
    lens = logit_lens(asked, LayersConfig(tokens=30))
    tokens = read_tokens(asked, LayersConfig(tokens=30))
    with torch.no_grad():
        # behind the last layer stands the model's own loss; behind none, what the head says of the embedding alone
        own = model.decoder(tokens[:, :-1], labels_BT=tokens[:, 1:]).loss_sum.item() / 29
        first = model.decoder.logits(model.decoder.norm(model.decoder.embedding[tokens[0, :-1]]))
    assert [found["behind"] for found in lens.details["layers"]] == ["embedding", "layer 0", "layer 1", "layer 2"]
    assert lens.details["layers"][-1]["as_the_model"] == 1
    assert lens.figures["layer 2 nats"].value == pytest.approx(own, rel=1e-5)
    right = torch.nn.functional.cross_entropy(first, tokens[0, 1:]).item()
    assert lens.figures["embedding nats"].value == pytest.approx(right, rel=1e-5)
    for draw, result in ((draw_maps, maps), (draw_timescales, scales), (draw_lens, lens)):
        figure = Figure()
        draw(figure, {"a": result.details})
        assert figure.axes[0].has_data()


def test_what_a_user_gets_wrong_is_said(subject):
    with pytest.raises(DataError, match=r"tokens \(5000\) are more than the longest document"):
        attention_maps(subject, LayersConfig(tokens=5000))
    with pytest.raises(ConfigError, match=r"tokens \(1\)"):
        timescales(subject, LayersConfig(tokens=1))
    only = replace(subject, model=BraidModel(decoder_of("attention"), subject.manifest().tokenizer_path))
    with pytest.raises(ConfigError, match="test has none"):
        timescales(only, LayersConfig(tokens=9))
    with pytest.raises(ConfigError, match="looks inside a decoder of ours"):
        attention_maps(replace(subject, model=object()), LayersConfig())
