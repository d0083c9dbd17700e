"""GGUF files: read back by gguf, and run by transformers' own reader of the format, which undoes the order of rows itself."""

import gguf
import patterns
import pytest
import torch
from patterns import layer
from transformers import AutoModelForCausalLM

from llm.errors import ConfigError, DataError
from llm.export import folder as exporter

VOCABULARY = patterns.VOCABULARY
MAMBA2 = {"state": 16, "norm_eps": 1e-5}
# 128 channels per head: transformers' reader of GGUF takes Qwen3's size of heads for granted
MODELS = {
    "llama": ([layer("attention", kv_heads=1, rope_theta=5e3)] * 2, {"tie_embeddings": False}),
    "qwen3": ([layer("attention", head_dim=128, qk_norm=True)] * 2, {}),
    "mamba": ([layer("mamba", "none")] * 2, {"norm_eps": 1e-5}),
    "mamba2": ([layer("mamba2", "none", **MAMBA2)] * 2, {"norm_eps": 1e-5}),
    "granitehybrid": ([layer("mamba2", **MAMBA2), layer("attention", kv_heads=1, rope_theta=None)], {"norm_eps": 1e-5}),
    "granitehybrid_rope": ([layer("attention", kv_heads=1), layer("mamba2", **MAMBA2)], {"norm_eps": 1e-5}),
}


def written(name, tokenizer, tmp_path):
    layers, settings = MODELS[name]
    model = patterns.model(layers, **settings)
    options = exporter.ExportOptions(gguf=True)
    exporter.export_folder(model, tokenizer, tmp_path / "out", {}, 64, options, weights=model.state_dict())
    return model, tmp_path / "out"


@pytest.mark.parametrize("name", ["llama", "qwen3", "mamba"])
def test_transformers_runs_them(name, tokenizer, tmp_path):
    model, out = written(name, tokenizer, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(out, gguf_file="out.gguf", dtype=torch.float32).eval()
    tokens = torch.randint(VOCABULARY, (2, 50), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens, use_cache=False).logits, model(tokens).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_what_llama_cpp_reads(name, tokenizer, tmp_path):
    model, out = written(name, tokenizer, tmp_path)
    reader = gguf.GGUFReader(out / "out.gguf")
    architecture = name.removesuffix("_rope")
    keys = {key.removeprefix(f"{architecture}."): field.contents() for key, field in reader.fields.items()}
    assert keys["general.architecture"] == architecture
    assert (keys["block_count"], keys["embedding_length"]) == (2, 32)
    # each tensor has a name that this architecture has
    number = next(n for n, known in gguf.MODEL_ARCH_NAMES.items() if known == architecture)
    known = {gguf.TENSOR_NAMES[t].format(bid=i) for t in gguf.MODEL_TENSORS[number] for i in range(2)}
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert {n.removesuffix(".weight").removesuffix(".bias") for n in tensors} <= known
    assert sum(int(t.n_elements) for t in tensors.values()) == sum(x.numel() for x in model.state_dict().values())
    if architecture in ("llama", "qwen3"):
        assert keys["rope.freq_base"] == (5e3 if name == "llama" else 1e4)
        assert keys["attention.head_count_kv"] == (1 if name == "llama" else 2)
        assert keys["rope.dimension_count"] == keys["attention.key_length"] == (16 if name == "llama" else 128)
    if architecture == "granitehybrid":
        attention = ["attn" in " ".join(n for n in tensors if n.startswith(f"blk.{i}.attn_q")) for i in range(2)]
        assert keys["attention.head_count_kv"] == [int(x) for x in attention]
        assert keys["rope.scaling.finetuned"] is (name == "granitehybrid_rope")
        assert keys["attention.scale"] == pytest.approx(16**-0.5)
    if "mamba" in name:
        state = model.state_dict()
        rates = torch.from_numpy(tensors["blk.1.ssm_a"].data.copy())
        torch.testing.assert_close(rates.flatten(), -state["blocks.1.mixer.A_log"].exp().flatten())
        assert keys["ssm.time_step_rank"] == 2
    tokens = keys["tokenizer.ggml.tokens"]
    assert len(tokens) == VOCABULARY
    assert tokens[keys["tokenizer.ggml.bos_token_id"]] == "<|endoftext|>"
    assert keys["tokenizer.ggml.pre"] == "gpt-2"
    assert keys["tokenizer.ggml.add_bos_token"] is True


def test_what_llama_cpp_does_not_have(tokenizer, tmp_path):
    options = exporter.ExportOptions(gguf=True)
    for kind, settings, words in (
        ("retention", {}, "no architecture for this model"),
        ("attention", {"window": 5, "qk_norm": True}, r"window \(5\) is not applied"),
        ("attention", {"window": 5}, "no architecture"),
    ):
        model = patterns.model([layer(kind, **settings)])
        with pytest.raises(ConfigError, match=words):
            exporter.export_folder(model, tokenizer, tmp_path / "out", {}, 64, options)
    other = tmp_path / "tokenizer.json"
    other.write_text(tokenizer.read_text().replace('"use_regex": true', '"use_regex": false'))
    model = patterns.model([layer("attention")])
    with pytest.raises(DataError, match="must be GPT-2's byte level"):
        exporter.export_folder(model, other, tmp_path / "out", {}, 64, options, weights=model.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
