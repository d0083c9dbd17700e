"""Native architectures: transformers' own models come in, go out and are the same; what would be lost is refused, with reasons."""

import json

import patterns
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llm.data import DOCUMENT_TOKEN
from llm.errors import CheckpointError, ConfigError, DataError
from llm.export import folder as exporter
from llm.export import native
from llm.export.imported import import_folder, loaded, read_imported, read_settings
from llm.init import cast_model, pinned

VOCABULARY, TOKENS = patterns.VOCABULARY, 150
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 3}
TRANSFORMER = {**SIZES, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 5e3}
# transformers 4 norms all groups of Mamba-2 together, and its xLSTM fails beyond one chunk of tokens
OLD = transformers.__version__ < "5"
GROUPS = 1 if OLD else 2
NATIVE = [name for name in patterns.NATIVE if not (OLD and name == "xlstm")]
HYBRID = {**TRANSFORMER, "mamba_n_heads": 4, "mamba_d_state": 16, "mamba_n_groups": GROUPS, "attention_bias": False}
GRANITE = {**HYBRID, "num_local_experts": 0, "shared_intermediate_size": 96, "layer_types": ["mamba", "attention", "mamba"]}
SCALES = {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "logits_scaling": 8.0, "attention_multiplier": 0.0625}

# positions stretched, so that all of them reach within the tokens here; Llama 3.1's, with its own names
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 = {"rope_scaling": {**LLAMA3, "original_max_position_embeddings": 64}}
YARN = {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta_fast": 8.0}}
LINEAR = {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}

# (model_type, settings of its class), as transformers users make them
THEIRS = {
    "llama": ("llama", TRANSFORMER),
    "llama_tied": ("llama", {**TRANSFORMER, "tie_word_embeddings": True, "head_dim": 24, **LLAMA3}),
    "mistral": ("mistral", {**TRANSFORMER, "sliding_window": 9}),
    "qwen3": (
        "qwen3",
        {**TRANSFORMER, **YARN, "head_dim": 32, "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
    ),
    "mamba": ("mamba", {**SIZES, "state_size": 8}),
    "mamba2": ("mamba2", {**SIZES, "num_heads": 4, "head_dim": 32, "n_groups": GROUPS, "state_size": 16}),
    "xlstm": ("xlstm", {**SIZES, "num_heads": 2, "qk_dim_factor": 1.0}),
    "granite": ("granitemoehybrid", {**GRANITE, "attention_multiplier": 0.25, "position_embedding_type": "rope", **LINEAR}),
    "granite_scaled": ("granitemoehybrid", {**GRANITE, **SCALES, "tie_word_embeddings": True}),
    "bamba": ("bamba", {**HYBRID, "attn_layer_indices": [1], **({} if OLD else LINEAR)}),
}


def their_model(name):
    model_type, settings = THEIRS[name]
    torch.manual_seed(0)
    config = transformers.CONFIG_MAPPING[model_type](**settings, pad_token_id=0, bos_token_id=0, eos_token_id=0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.fixture
def saved(tokenizer, tmp_path):
    """Saves one of `THEIRS`: (the model, its folder)."""

    def save(name, **options):
        model, folder = their_model(name), tmp_path / name
        model.save_pretrained(folder, **options)
        (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
        return model, folder

    return save


@pytest.mark.parametrize("name", [name for name in THEIRS if not (OLD and name == "xlstm")])
def test_their_models_come_in_and_go_out(name, saved, tokenizer, tmp_path):
    theirs, folder = saved(name, max_shard_size="50KB")
    import_folder(folder, tmp_path / "in", check_logits=False)
    model = loaded(*read_imported(tmp_path / "in"))
    tokens = torch.randint(VOCABULARY, (2, TOKENS), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want, got = theirs(tokens, use_cache=False).logits, model(tokens).logits
    assert (got - want).abs().max() <= 1e-5 * max(1, want.abs().max())

    out, target = tmp_path / "out", THEIRS[name][0]
    exporter.export_folder(model, tokenizer, out, {}, 64, exporter.ExportOptions(target), weights=model.state_dict())
    again = AutoModelForCausalLM.from_pretrained(out)
    assert type(again) is type(theirs)
    if name != "granite_scaled":
        # whose multipliers have become factors of its weights
        assert all(torch.equal(again.get_parameter(n), p) for n, p in theirs.named_parameters())
    with torch.no_grad():
        torch.testing.assert_close(again(tokens, use_cache=False).logits, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NATIVE)
def test_ours_go_out_and_come_in(name, tokenizer, tmp_path):
    layers, settings = patterns.NATIVE[name]
    model = patterns.model(layers, **settings)
    options = exporter.ExportOptions(name, shard_bytes=50_000)
    exporter.export_folder(model, tokenizer, tmp_path / "out", {}, 64, options, weights=model.state_dict())
    import_folder(tmp_path / "out", tmp_path / "in", check_logits=False)
    config, weights = read_imported(tmp_path / "in")
    assert not native.differences(model.config, config)
    assert set(weights) == set(model.state_dict())
    assert all(torch.equal(weights[key], x) for key, x in model.state_dict().items())


@pytest.mark.parametrize("name", NATIVE)
def test_the_automatic_choice_is_the_first_that_holds_all(name):
    layers, settings = patterns.NATIVE[name]
    # a rotation of half the channels is Bamba's alone; xLSTM's head is never tied
    assert native.choose(patterns.model(layers, **settings).config) == name
    assert native.choose(patterns.model([*layers, patterns.layer("retention")], **settings).config) is None


@pytest.mark.parametrize("name", ["mamba2", "llama"])
def test_bfloat16_is_what_training_holds(name, tokenizer, tmp_path):
    """Pinned weights lie there in float32; what comes back is the float32 weights, rounded once."""
    layers, settings = patterns.NATIVE[name]
    model, out = patterns.model(layers, **settings), tmp_path / "out"
    options = exporter.ExportOptions(name, dtype="bfloat16")
    metadata = exporter.export_folder(model, tokenizer, out, {}, 64, options, weights=model.state_dict())
    assert metadata["dtype"] == "bfloat16"
    kept, written = pinned(model), load_file(out / "model.safetensors")
    for theirs, (ours, *_) in native.pairs(name, model.config):
        assert written[theirs].dtype == (torch.float32 if ours in kept else torch.bfloat16), theirs
    assert AutoModelForCausalLM.from_pretrained(out, dtype="auto").dtype == torch.bfloat16
    import_folder(out, tmp_path / "in", check_logits=False)
    _, weights = read_imported(tmp_path / "in")
    cast_model(model)
    assert all(torch.equal(weights[key], x.float()) for key, x in model.state_dict().items())


def test_what_does_not_run_in_bfloat16_is_refused(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(native.transformers, "__version__", "5.23.0")
    layers, settings = patterns.NATIVE["xlstm"]
    with pytest.raises(ConfigError, match="code of xlstm in transformers does not run in it; use --to remote, or float32"):
        exporter.export_folder(
            patterns.model(layers, **settings), tokenizer, tmp_path / "out", {}, 64, exporter.ExportOptions(dtype="bfloat16")
        )


LOSSY = {
    "llama": [
        ({"soft_cap": 5.0}, "mixer.soft_cap"),
        ({"gate": True}, "mixer.gate"),
        ({"rope_theta": None}, "mixer.rope_theta"),
        ({"window": 5}, "mixer.window"),
    ],
    "qwen3": [({"qk_norm": True, "norm_eps": 1e-3}, "mixer.norm_eps")],
}


@pytest.mark.parametrize(("target", "settings", "reason"), [(t, *case) for t, cases in LOSSY.items() for case in cases])
def test_what_would_be_lost_is_refused(target, settings, reason, tokenizer, tmp_path):
    model = patterns.model([patterns.layer("attention", **settings)])
    with pytest.raises(ConfigError, match=f"--to {target} cannot hold this model without loss .*{reason}.*use --to remote"):
        exporter.export_folder(model, tokenizer, tmp_path / "out", {}, 64, exporter.ExportOptions(target))
    assert not list(tmp_path.iterdir())


def test_logits_that_are_scaled_are_refused():
    layers, settings = patterns.NATIVE["llama"]
    scaled = patterns.model(layers, **settings, mup_base_width=16).config
    assert native.losses("llama", scaled) == ["mup_base_width (16), which scales the logits, would be None"]
    assert not native.losses("llama", patterns.model(layers, **settings, mup_base_width=32).config)


def test_targets_that_make_no_sense(tokenizer, tmp_path):
    model = patterns.model([patterns.layer("retention")])
    for target, words in {"lama": "did you mean 'llama'", "mamba2": "no layers of retention"}.items():
        with pytest.raises(ConfigError, match=words):
            exporter.export_folder(model, tokenizer, tmp_path / "out", {}, 64, exporter.ExportOptions(target))


@pytest.mark.parametrize(
    ("version", "name", "changes", "words"),
    [
        ("5.23.0", "xlstm", {"logit_cap": None}, r"logit_cap \(null\) must be a number"),
        ("4.57.6", "xlstm", {}, r"transformers \(4.57.6\) is too old, as its code for this model is right from 5.0 on"),
        ("4.57.6", "mamba2", {"layers": {"groups": 2}}, r"transformers \(4.57.6\) is too old"),
    ],
)
def test_versions_and_settings_whose_code_would_be_wrong(version, name, changes, words, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(native.transformers, "__version__", version)
    layers, settings = patterns.NATIVE[name]
    grouped = changes.pop("layers", {})
    layers = [{**one, "mixer": {**one["mixer"], **grouped}} for one in layers]
    model = patterns.model(layers, **{**settings, **changes})
    with pytest.raises(ConfigError, match=words):
        exporter.export_folder(model, tokenizer, tmp_path / "out", {}, 64, exporter.ExportOptions(name))


def edited(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def refused(folder, error, words, **options):
    with pytest.raises(error, match=words):
        import_folder(folder, folder.with_name("in"), check_logits=False, **options)
    assert not folder.with_name("in").exists()


def test_settings_that_no_layer_here_has(saved):
    _, folder = saved("llama")
    original = (folder / "config.json").read_text()
    for changes, words in {
        ("attention_bias", True): r"attention_bias \(True\) must be False",
        ("hidden_act", "gelu"): r"hidden_act \(gelu\) must be silu",
        ("rope_parameters", None): None,
        ("model_type", "gpt2"): r"model_type \(gpt2\) cannot be imported; known: bamba",
        ("model_type", "mistrall"): "did you mean 'mistral'",
    }.items():
        if words is not None:
            edited(folder, **dict([changes]))
            refused(folder, ConfigError, words)
            (folder / "config.json").write_text(original)
    for scaling, words in {
        ("dynamic", None): r"rope_type \(dynamic\) must be default, linear, llama3, yarn: .* a cache of keys does not; set it to",
        ("yarn", "truncate"): r"yarn's truncate \(False\) has no setting here",
    }.items():
        kind, more = scaling
        rope = {"rope_type": kind, "factor": 2.0, "rope_theta": 1e4, "original_max_position_embeddings": 64}
        edited(folder, rope_parameters=rope | ({more: False} if more else {}))
        refused(folder, ConfigError, words)
    edited(folder, model_type="braidy", auto_map={"AutoModelForCausalLM": "modeling_x.X"})
    refused(folder, ConfigError, r"brings code of its own \(modeling_x.py\), which is not run")


def test_damage(saved):
    _, folder = saved("llama")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    refused(folder, CheckpointError, "is damaged or missing .*; fetch it again")
    tensors = load_file_bytes(whole, folder)
    save_file({k: v for k, v in tensors.items() if k != "model.norm.weight"}, weights)
    refused(folder, CheckpointError, "lacks model.norm.weight")
    save_file(tensors | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(64)}, weights)
    refused(folder, CheckpointError, "holds model.layers.0.self_attn.q_proj.bias, which such a model has not")
    save_file(tensors | {"model.norm.weight": torch.zeros(63)}, weights)
    refused(folder, CheckpointError, r"model.norm.weight \(63,\) does not have the shape")
    (folder / "config.json").write_text("{")
    refused(folder, CheckpointError, "config.json is damaged")
    (folder / "config.json").unlink()
    refused(folder, CheckpointError, "has no config.json")


def load_file_bytes(content, folder):
    (folder / "model.safetensors").write_bytes(content)
    return {name: x.clone() for name, x in load_file(folder / "model.safetensors").items()}


def test_pickles_are_read_only_when_asked(saved, tmp_path):
    theirs, folder = saved("llama")
    (folder / "model.safetensors").unlink()
    torch.save(theirs.state_dict(), folder / "pytorch_model.bin")
    refused(folder, CheckpointError, r"pickles \(pytorch_model.bin\), which run code when they are loaded")
    import_folder(folder, tmp_path / "trusted", check_logits=False, allow_pickle=True)
    torch.save({"x": read_settings}, folder / "pytorch_model.bin")
    refused(folder.rename(tmp_path / "bad"), CheckpointError, "more than tensors", allow_pickle=True)


def test_tokenizers_that_do_not_belong(saved, tokenizer, tmp_path):
    theirs, folder = saved("llama")
    (folder / "tokenizer.json").unlink()
    refused(folder, DataError, "has no tokenizer.json; save it there")
    theirs.resize_token_embeddings(VOCABULARY - 50)
    theirs.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    refused(folder, DataError, r"has \d+ ids and the model 250; take the tokenizer of this model")
    model = patterns.model([patterns.layer("attention")])
    with pytest.raises(DataError, match="does not exist"):
        exporter.export_folder(model, tmp_path / "none.json", tmp_path / "out", {}, 64)
    strange = tmp_path / "strange.json"
    strange.write_text(tokenizer.read_text().replace(DOCUMENT_TOKEN, "<s>"))
    with pytest.raises(DataError, match="does not fit a model"):
        exporter.export_folder(model, strange, tmp_path / "out", {}, 64)
