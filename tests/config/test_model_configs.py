"""configs/model: every file loads, builds and costs what it says; published sizes have their published parameters."""

from dataclasses import dataclass, field

import pytest
import torch
from omegaconf import OmegaConf

from llm.config import configs_root, load
from llm.cost import model_cost
from llm.errors import ConfigError
from llm.init import parameter_roles
from llm.model import Decoder, ModelConfig, model_kinds
from llm.train.config import load_config

FILES = sorted(path.stem for path in (configs_root() / "model").glob("*.yaml"))
# What a run takes from its tokenizer, for the files that leave it open.
VOCABULARY = 32768

PUBLISHED = {
    # the checkpoints of state-spaces, as transformers counts them; vocabulary 50277, padded to multiples of 8 and 16
    "mamba-130m": 129_135_360,
    "mamba2-130m": 128_989_632,
    "mamba2-1.3b": 1_343_757_312,
    # NX-AI/xLSTM-7b; the same block at the sizes of NX-AI/xlstm-jax, mLSTMv1_1.3B.yaml
    "xlstm-7b": 6_865_424_896,
    "mlstm-1.3b": 1_420_839_104,
    # xLSTMLMModel of the package xlstm 2.0.6 with slstm_at [3, 20]; arXiv:2405.04517 rounds to 163.7M
    "xlstm-125m": 163_690_928,
    # TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T
    "tinyllama-1.1b": 1_100_048_384,
}


@dataclass(frozen=True)
class ModelFile:
    """All that a model file may hold."""

    model: ModelConfig = field(default_factory=ModelConfig)


def own_vocabulary(name: str) -> bool:
    return "vocab_size" in OmegaConf.load(configs_root() / f"model/{name}.yaml").model


def vocabulary(name: str) -> list[str]:
    """What the command line adds."""
    return [] if own_vocabulary(name) else [f"model.vocab_size={VOCABULARY}"]


def config(name: str) -> ModelConfig:
    return load(ModelFile, [f"model/{name}.yaml", *vocabulary(name)], model_kinds("model")).model


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def on_meta(name: str) -> Decoder:
    with torch.device("meta"):
        return Decoder(config(name))


@pytest.mark.parametrize("name", FILES)
def test_the_module_holds_the_parameters_that_the_config_costs(name):
    model = on_meta(name)
    assert model_cost(model.config, 2048).parameters == count(model)
    assert parameter_roles(model).keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("name", FILES)
def test_an_experiment_includes_it(name, tmp_path):
    experiment = tmp_path / "experiment.yaml"
    experiment.write_text(
        f"include: [base.yaml, model/{name}.yaml, train/wsd.yaml]\nname: x\ndata: {{manifest: x}}\ntrain: {{steps: 1, batch: 1}}\n"
    )
    assert load_config([str(experiment), *vocabulary(name)]).model == config(name)


@pytest.mark.parametrize("name", [name for name in FILES if not own_vocabulary(name)])
def test_a_vocabulary_left_open_is_asked_for(name):
    with pytest.raises(ConfigError, match=r"model\.vocab_size is not set"):
        load(ModelFile, [f"model/{name}.yaml"], model_kinds("model"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameters(name):
    assert count(on_meta(name)) == PUBLISHED[name]


def theirs(name: str) -> torch.nn.Module:
    """The model of `transformers` with the published config."""
    import transformers as hf

    mamba2 = {"vocab_size": 50288, "head_dim": 64, "state_size": 128, "n_groups": 1, "tie_word_embeddings": True}
    xlstm = {"vocab_size": 50304, "qk_dim_factor": 0.5, "ffn_proj_factor": 2.667, "ffn_round_up_to_multiple_of": 64}
    # as far as ours goes: without experts
    jamba = {"num_experts": 1, "num_experts_per_tok": 1, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2}
    llama = {"vocab_size": 32000, "intermediate_size": 5632, "num_attention_heads": 32, "num_key_value_heads": 4}
    configs = {
        "mamba-130m": lambda: hf.MambaConfig(vocab_size=50280, hidden_size=768, num_hidden_layers=24, state_size=16),
        "mamba2-130m": lambda: hf.Mamba2Config(hidden_size=768, num_hidden_layers=24, num_heads=24, **mamba2),
        "mamba2-1.3b": lambda: hf.Mamba2Config(hidden_size=2048, num_hidden_layers=48, num_heads=64, **mamba2),
        "xlstm-7b": lambda: hf.xLSTMConfig(hidden_size=4096, num_hidden_layers=32, num_heads=8, **xlstm),
        "mlstm-1.3b": lambda: hf.xLSTMConfig(hidden_size=2048, num_hidden_layers=24, num_heads=4, **xlstm),
        "tinyllama-1.1b": lambda: hf.LlamaConfig(hidden_size=2048, num_hidden_layers=22, **llama),
        "jamba-like-1.3b": lambda: hf.JambaConfig(
            vocab_size=65536,
            hidden_size=2048,
            intermediate_size=7168,
            num_hidden_layers=16,
            num_attention_heads=16,
            num_key_value_heads=4,
            attn_layer_period=8,
            attn_layer_offset=4,
            mamba_dt_rank=128,
            **jamba,
        ),
        "samba-421m": lambda: hf.JambaConfig(
            vocab_size=32000,
            hidden_size=1536,
            intermediate_size=4096,
            num_hidden_layers=12,
            num_attention_heads=12,
            num_key_value_heads=12,
            attn_layer_period=2,
            attn_layer_offset=1,
            mamba_dt_rank=96,
            tie_word_embeddings=True,
            **jamba,
        ),
    }
    with torch.device("meta"):
        model = hf.AutoModelForCausalLM.from_config(configs[name]())
    model.tie_weights()
    return model


@pytest.mark.parametrize("name", ["mamba-130m", "mamba2-130m", "mamba2-1.3b", "xlstm-7b", "mlstm-1.3b", "tinyllama-1.1b"])
def test_as_many_parameters_as_in_transformers(name):
    assert count(on_meta(name)) == count(theirs(name))


@pytest.mark.parametrize("name", ["jamba-like-1.3b", "samba-421m"])
def test_hybrids_have_the_layers_of_jamba_without_its_norms_in_mamba(name):
    model = theirs(name)
    extra = [p.numel() for n, p in model.named_parameters() if n.split(".")[-2] in ("dt_layernorm", "b_layernorm", "c_layernorm")]
    assert extra
    assert count(on_meta(name)) == count(model) - sum(extra)
    kinds = ["mamba" if hasattr(layer, "mamba") else "attention" for layer in model.model.layers]
    assert [config(name).layers[layer].mixer.kind for layer in config(name).layer_names()] == kinds


def test_families_of_ten_million_are_comparable():
    names = [name for name in FILES if name.endswith("-10m")]
    assert len(names) == 5
    for name in names:
        assert 9e6 < count(on_meta(name).blocks) < 10.5e6, name
    assert count(on_meta("retention-125m").blocks) == pytest.approx(count(on_meta("transformer-125m").blocks), rel=1e-3)


def test_the_demo_trains_five_kinds():
    shown = load_config(["exp/demo.yaml"]).model
    shown.check()
    assert shown == config("braid-five")
    assert {layer.mixer.kind for layer in shown.layers.values()} == {"mamba", "mlstm", "retention", "titans", "attention"}
