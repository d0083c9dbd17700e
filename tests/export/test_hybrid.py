"""Attention that becomes recurrence: weights go where they belong, other layers stay, and what starts from them learns faster."""

import patterns
import pytest
import torch
from patterns import layer

from launch import import_hf
from llm.errors import ConfigError
from llm.export import folder as exporter
from llm.export.hybrid import Replacement, parse, planned, replaced
from llm.export.imported import loaded, read_imported
from llm.export.lazy import attention_of, laziest, lazy_ratios, recency_ratios


def teacher():
    return patterns.model([layer("attention", heads=4, kv_heads=2)] * 4).eval()


def tokens(count=60):
    return torch.randint(patterns.VOCABULARY, (2, count), generator=torch.Generator().manual_seed(0))


def test_words():
    assert parse("layers 2,3, 6: mamba2; lazy 4: window=1024") == [
        Replacement((2, 3, 6), 0, "mamba2"),
        Replacement((), 4, "attention", 1024),
    ]
    for wrong in ("2: mamba2", "layers 2: gru", "layers 2: window", "layers 2: mamba2=3", "lazy: mlstm", ""):
        with pytest.raises(ConfigError, match=r"--replace \(.*\) must read `layers 2,3: KIND`"):
            parse(wrong)


@pytest.mark.parametrize("kind", ["mamba2", "mlstm", "retention"])
def test_weights_go_where_they_belong(kind):
    model = teacher()
    config, weights = replaced(model.config, model.state_dict(), {1: Replacement((1,), 0, kind), 2: Replacement((2,), 0, kind)})
    assert [config.layers[name].mixer.kind for name in config.layer_names()] == ["attention", kind, kind, "attention"]
    new, old = loaded(config, weights), model.state_dict()
    assert set(weights) == set(new.state_dict())
    for name, x in new.state_dict().items():
        if ".mixer." not in name or name.split(".")[1] in "03":
            assert torch.equal(x, old[name]), name
    mixer, before = new.blocks[1].mixer, model.blocks[1].mixer
    per_query_head = {x: getattr(before, f"{x}_proj").weight.view(2, 8, 32).repeat_interleave(2, 0).reshape(32, 32) for x in "kv"}
    assert torch.equal(mixer.out_proj.weight, before.out_proj.weight)
    gate = (before.out_proj.weight.T + per_query_head["v"]) / 2
    if kind == "mamba2":
        z, x, B, C, _ = mixer.in_proj.weight.split([32, 32, 32, 32, 4])
        got = {"q": C * 8**0.5, "k": B, "v": x, "gate": z}
        assert torch.equal(mixer.conv_weight, torch.tensor([0.0, 0, 0, 1]).expand(96, 4))
    else:
        got = {x: getattr(mixer, f"{x}_proj").weight for x in ("q", "k", "v", "gate")}
    want = {"q": before.q_proj.weight, **per_query_head, "gate": gate}
    for name, x in got.items():
        torch.testing.assert_close(x, want[name])
    assert torch.isfinite(new(tokens()).logits).all()


def test_a_window_changes_nothing_but_the_window():
    model = teacher()
    config, weights = replaced(model.config, model.state_dict(), {0: Replacement((0,), 0, "attention", 100)})
    assert torch.equal(loaded(config, weights)(tokens()).logits, model(tokens()).logits)
    config, weights = replaced(model.config, model.state_dict(), {0: Replacement((0,), 0, "attention", 5)})
    assert config.layers[config.layer_names()[0]].mixer.window == 5
    assert not torch.allclose(loaded(config, weights)(tokens()).logits, model(tokens()).logits)


def test_replacements_that_make_no_sense():
    model = teacher()
    with pytest.raises(ConfigError, match="names layer 9, and the model has 0 to 3"):
        replaced(model.config, model.state_dict(), {9: Replacement((9,), 0, "mamba2")})
    other = patterns.model([layer("retention")])
    with pytest.raises(ConfigError, match="layer 0, which is retention; only attention"):
        replaced(other.config, other.state_dict(), {0: Replacement((0,), 0, "mamba2")})
    narrow = patterns.model([layer("attention", head_dim=12)])
    with pytest.raises(ConfigError, match=r"layer 0's 2 heads of 12 channels must make up the width \(32\) of mlstm"):
        replaced(narrow.config, narrow.state_dict(), {0: Replacement((0,), 0, "mlstm")})


@pytest.mark.timeout(300)
def test_what_starts_from_attention_learns_its_outputs_faster():
    """Mean squared error to the attention's outputs after some steps, from its weights and from none."""
    model = teacher()
    config, weights = replaced(model.config, model.state_dict(), {0: Replacement((0,), 0, "mamba2")})
    x = torch.randn(8, 40, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = model.blocks[0].mixer(x)[0]
    errors = []
    for mixer in (loaded(config, weights).blocks[0].mixer, type(model).create(config, seed=1).blocks[0].mixer):
        optimizer = torch.optim.Adam(mixer.parameters(), lr=1e-3)
        for _ in range(60):
            error = (mixer(x)[0] - want).square().mean()
            optimizer.zero_grad()
            error.backward()
            optimizer.step()
        errors.append(error.item())
    assert errors[0] < 0.8 * errors[1], errors


def test_lazy_layers_are_found():
    """A layer whose queries and keys are small attends evenly; one whose keys match its queries, to the token itself."""
    model = teacher()
    with torch.no_grad():
        for block in model.blocks:
            block.mixer.q_proj.weight.mul_(1e-3)
        model.blocks[2].mixer.q_proj.weight.copy_(3 * torch.eye(32))
        model.blocks[2].mixer.k_proj.weight.copy_(3 * torch.eye(32)[:16])
    ratios = lazy_ratios(model, tokens(200), sink=1, recent=3, queries=8)
    assert set(ratios) == {0, 1, 2, 3}
    assert laziest(ratios, 1) == [2]
    even = sum(4 / n for n in range(193, 201)) / 8
    assert ratios[0] == pytest.approx(even, rel=1e-2)


def test_attention_measured_is_the_attention_that_runs():
    mixer, x = teacher().blocks[0].mixer, torch.randn(1, 20, 32)
    v = mixer.v_proj(x).view(1, 20, 2, 8).repeat_interleave(2, 2)
    y = torch.einsum("bhqt,bthk->bqhk", attention_of(mixer, x, 20), v)
    torch.testing.assert_close(mixer.out_proj(y.flatten(-2)), mixer(x)[0], rtol=1e-5, atol=1e-5)


def test_heads_are_divided():
    """What stays is the attention without the chosen heads' contributions, and what comes is Mamba-2 with their weights."""
    model = patterns.model([layer("attention", heads=6, kv_heads=3, head_dim=8, qk_norm=True, gate=True)]).eval()
    config, weights = replaced(model.config, model.state_dict(), {0: Replacement((), 0, "mamba2", heads=1, chosen=(1,))})
    new, old = loaded(config, weights).blocks[0].mixer, model.blocks[0].mixer
    assert torch.equal(new.recurrent.out_proj.weight, old.out_proj.weight[:, 16:32])
    assert (new.heads, new.kv_heads, new.recurrent.config.heads) == (4, 2, 2)
    assert sum(p.numel() for p in new.parameters()) == config.layers["attention"].mixer.cost(32, 64, 4).parameters
    x = torch.randn(2, 30, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        recurrent, _ = new.recurrent(x)
        alone = new(x)[0] - recurrent
        # heads 2 and 3 share the key/value head 1
        old.out_proj.weight[:, 16:32] = 0
        torch.testing.assert_close(alone, old(x)[0], rtol=1e-4, atol=1e-5)
    _, v, B, C, _ = new.recurrent.in_proj.weight.split([16, 16, 16, 16, 2])
    rows = {"C": (C * 8**0.5, old.q_proj.weight[16:32])}
    rows |= {key: (x, getattr(old, f"{name}_proj").weight[8:16].repeat(2, 1)) for key, x, name in (("B", B, "k"), ("v", v, "v"))}
    for got, want in rows.values():
        torch.testing.assert_close(got, want)


def test_the_heads_that_look_back_least_are_chosen():
    """Key/value head 1 of layer 2 attends to the token itself, others evenly; whole layers are left when all of theirs go."""
    model = teacher()
    with torch.no_grad():
        for block in model.blocks:
            block.mixer.q_proj.weight.mul_(1e-3)
        model.blocks[2].mixer.q_proj.weight[16:].copy_(9 * torch.eye(32)[8:24])
        model.blocks[2].mixer.k_proj.weight[8:].copy_(9 * torch.eye(32)[8:16])
        model.blocks[2].mixer.q_proj.weight[24:].copy_(9 * torch.eye(32)[8:16])
    ratios = recency_ratios(model, tokens(200), recent=3, queries=8)
    assert set(ratios) == {(i, g) for i in range(4) for g in range(2)}
    assert laziest(ratios, 1) == [(2, 1)]
    assert ratios[0, 0] == pytest.approx(sum(3 / n for n in range(193, 201)) / 8, rel=1e-2)
    plan = planned(parse("layers 0: mlstm; heads 3: mamba2"), {}, ratios | {(1, 0): 0.9, (1, 1): 0.8})
    assert {i: (one.kind, one.chosen) for i, one in plan.items()} == {
        0: ("mlstm", ()),
        1: ("mamba2", (0, 1)),
        2: ("mamba2", (1,)),
    }
    config, weights = replaced(model.config, model.state_dict(), plan)
    mixers = [config.layers[name].mixer for name in config.layer_names()]
    assert [mixer.kind for mixer in mixers] == ["mlstm", "mamba2", "attention", "attention"]
    assert [getattr(mixer, "recurrent", None) is not None for mixer in mixers] == [False, False, True, False]
    assert torch.isfinite(loaded(config, weights)(tokens()).logits).all()
    with pytest.raises(ConfigError, match="asks for 9 heads, and 8 with full attention are left"):
        planned(parse("heads 9: mamba2"), {}, ratios)
    with pytest.raises(ConfigError, match="use `heads 2: mamba2`"):
        parse("heads 2: mlstm")


def test_the_command(tokenizer, tmp_path, capsys):
    """`lazy 1` takes the laziest of the layers that are not named."""
    model, folder = teacher(), tmp_path / "out"
    with torch.no_grad():
        for i in (1, 2):
            model.blocks[i].mixer.q_proj.weight.copy_((4 + i) * torch.eye(32))
            model.blocks[i].mixer.k_proj.weight.copy_((4 + i) * torch.eye(32)[:16])
    options = exporter.ExportOptions("llama")
    exporter.export_folder(model, tokenizer, folder, {}, 64, options, weights=model.state_dict())
    (tmp_path / "text.txt").write_text("def spam(eggs): return eggs\n" * 60)
    words = [str(folder), str(tmp_path / "in"), "--stream", "--replace"]
    lazy = "layers 1: mamba2; lazy 1: window=16"
    assert import_hf.main([*words, lazy]) == 2
    assert "name one with --lazy-text" in capsys.readouterr().err
    assert import_hf.main([*words, lazy, "--lazy-text", str(tmp_path / "text.txt")]) == 0
    said = capsys.readouterr().out
    assert "lazy ratio by layer: 0: " in said
    assert "logits were not compared" in said
    config, weights = read_imported(tmp_path / "in")
    mixers = [config.layers[name].mixer for name in config.layer_names()]
    assert [(mixer.kind, getattr(mixer, "window", None)) for mixer in mixers] == [
        ("attention", None),
        ("mamba2", None),
        ("attention", 16),
        ("attention", None),
    ]
    assert torch.equal(weights["blocks.1.mixer.out_proj.weight"], model.state_dict()["blocks.1.mixer.out_proj.weight"])
    assert torch.isfinite(loaded(config, weights)(tokens()).logits).all()
