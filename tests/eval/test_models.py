"""Whatever trained a model, its figures are those of one forward pass per document: our runs, our exports, transformers' models."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    Mamba2ForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
)

from data_prep.bpe import train_bpe
from eval import report
from eval.find import Reading, find_model
from eval.models.braid import BraidModel
from eval.perplexity import PerplexityConfig, perplexity
from eval.run import main as evaluate
from eval.score import score
from eval.texts import TextConfig, read_texts
from eval.windows import cut
from llm.config import build
from llm.data.manifest import Source
from llm.data.tokenizer import parse_tokenizer
from llm.data.write import DatasetWriter
from llm.errors import CheckpointError, ConfigError, DataError
from llm.mixers import MIXERS
from llm.model import Decoder, ModelConfig, model_kinds
from llm.ops.cross_entropy import cross_entropy_per_token
from llm.train.world import World
from tests.eval.writing import export, small_config, write_run

VOCABULARY = 300
TEXTS = ["a bright cold day in april", "and", "the clocks were striking thirteen " * 4, "it was", "a day of clocks " * 3]
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 16, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
MODELS = {
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(**SIZES, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, max_position_embeddings=512)
    ),
    "mamba2": lambda: Mamba2ForCausalLM(
        Mamba2Config(**SIZES, num_hidden_layers=2, state_size=8, num_heads=4, head_dim=8, n_groups=1, chunk_size=4)
    ),
    "mistral": lambda: MistralForCausalLM(
        MistralConfig(
            **SIZES,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=24,
            sliding_window=5,
            max_position_embeddings=512,
        )
    ),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=16, n_layer=1, n_head=2, n_positions=24)),
}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(subject, tmp_path_factory) -> Path:
    """transformers' models, each with the dataset's tokenizer; and texts."""
    folder = tmp_path_factory.mktemp("models")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(subject.manifest().tokenizer_path)), bos_token="<|endoftext|>"
    )
    for name, create in MODELS.items():
        torch.manual_seed(0)
        create().save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return folder


def load(path: Path, **reading):
    return find_model(str(path)).load(World(0, 1, CPU), Reading(CPU, **reading))


def total(subject, **settings) -> float:
    found = perplexity(subject, PerplexityConfig(**settings))
    return found.figures["nats_per_token"].value * found.details["text"]["tokens"]


@pytest.mark.parametrize("name", ["llama", "mistral", "mamba2"])
def test_transformers_models_are_one_forward_pass_per_document(folder, name, monkeypatch):
    text = str(folder / "text.jsonl")
    model, expected, windows = AutoModelForCausalLM.from_pretrained(folder / name), 0.0, 0.0
    subject = load(folder / name)
    for document in read_texts(subject, TextConfig(text=text)).tokens:
        for piece in (document, *(document[k : k + 9] for k in range(0, len(document) - 1, 8))):
            tokens = torch.from_numpy(piece.astype(np.int64))[None]
            with torch.no_grad():
                nats = cross_entropy_per_token(model(tokens[:, :-1]).logits, tokens[:, 1:]).sum().item()
            expected, windows = (nats + expected, windows) if piece is document else (expected, nats + windows)
    assert total(subject, text=text, rule="window", window=8) == pytest.approx(windows, rel=1e-6)
    for lanes in (1, 2, 16):
        assert total(subject, text=text, lanes=lanes, window=512) == pytest.approx(expected, rel=1e-6)
    # batches so short that documents go on from a cache, and one row at a time
    assert total(subject, text=text, lanes=3, window=7) == pytest.approx(expected, rel=1e-5)
    monkeypatch.setattr("eval.score.LOGITS", 7 * VOCABULARY)
    assert total(subject, text=text, window=7) == pytest.approx(expected, rel=1e-5)
    assert total(load(folder / name, mode="recurrent"), text=text) == pytest.approx(expected, rel=1e-5)
    _, state = subject.model.logits(torch.zeros(2, 5, dtype=torch.long))
    assert subject.model.state_bytes(state) > 2 * 16 * 4


def test_every_mixer_streams_as_one_long_pass_in_float32(subject, folder):
    kinds = {
        kind: {"mixer": {"kind": kind} | ({"heads": 2} if "heads" in config.__dataclass_fields__ else {}), "ffn": "none"}
        for kind, (config, _) in MIXERS.items()
    }
    values = {"width": 16, "depth": len(kinds), "vocab_size": VOCABULARY, "layers": kinds, "pattern": list(kinds)}
    decoder = Decoder.create(build(ModelConfig, values, model_kinds("")), seed=0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    model = replace(subject, model=BraidModel(decoder, subject.manifest().tokenizer_path))
    tokens = np.random.default_rng(0).integers(1, VOCABULARY, 331)
    documents = [np.concatenate([[0], tokens[:n]]) for n in (331, 70, 1)]
    expected = []
    for document in documents:
        x = torch.from_numpy(document)[None]
        with torch.no_grad():
            expected.append(cross_entropy_per_token(decoder(x[:, :-1]).logits, x[:, 1:])[0].numpy())
    lengths = np.array([len(document) for document in documents])
    for lanes, window in ((1, 97), (3, 64), (2, 5)):
        found = score(model, documents, cut(lengths, "stream", window, window), lanes, window).nats
        assert np.abs(found - np.concatenate(expected)).max() < 1e-5 * np.abs(np.concatenate(expected)).max()


def test_a_run_and_its_export_have_the_same_figures(subject, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "write_pictures", lambda *_: [])
    (tmp_path / "data").symlink_to(subject.manifest().root)
    run = write_run(tmp_path / "small", small_config(subject.model.decoder.config), subject.manifest().tokenizer_path.read_bytes())
    ours = load(run)
    half = load(run, dtype="bfloat16")
    dtypes = {name: x.dtype for name, x in half.model.decoder.named_parameters()}
    assert (dtypes["embedding"], dtypes["norm.norm_weight"]) == (torch.bfloat16, torch.float32)
    assert total(half, text=str(folder / "text.jsonl")) == pytest.approx(total(ours, text=str(folder / "text.jsonl")), rel=1e-2)
    out = export(ours.model.decoder, subject.manifest().tokenizer_path, tmp_path / "exported", 16)
    text = f"text={folder / 'text.jsonl'}"
    models = [word for path in (run, out, folder / "llama") for word in ("--model", str(path))]
    assert evaluate([*models, "--device", "cpu", "--out", "all", "perplexity", text]) == 0
    found = [json.loads((tmp_path / "all" / name / "eval-perplexity.json").read_text()) for name in ("small", "exported", "llama")]
    assert found[0]["details"]["text"] == found[1]["details"]["text"] == found[2]["details"]["text"]
    values = [report["figures"]["bits_per_byte"]["value"] for report in found]
    assert values[0] == values[1] != values[2]
    assert "| evaluation | figure | n | small | exported | llama |" in (tmp_path / "all" / "eval-summary.md").read_text()


def test_a_dataset_of_another_tokenizer_is_spelt_and_read_anew(folder, subject, tmp_path):
    """Where tokens spell the text; the dataset of the fixture holds random ones, which do not."""
    tokenizer = train_bpe(["it was a bright day"] * 9, vocabulary=270)
    writer = DatasetWriter(tmp_path / "other", tokenizer, {"text": Source(1.0, "CC0-1.0")})
    for text in TEXTS:
        writer.add("text", "validation", parse_tokenizer(tokenizer).encode(text).ids, text_bytes=len(text.encode()))
    dataset = TextConfig(dataset=str(writer.finish().root))
    files = TextConfig(text=str(folder / "text.jsonl"))
    for model in (load(folder / "llama"), subject):
        spelt, read = read_texts(model, dataset), read_texts(model, files)
        assert [x.tolist() for x in spelt.tokens] == [x.tolist() for x in read.tokens]
        assert (spelt.words == read.words).all()
    with pytest.raises(DataError, match="its tokens do not spell its text"):
        read_texts(load(folder / "llama"), TextConfig(dataset=str(subject.manifest().root), detokenize="wikitext"))


def test_what_a_model_cannot_do_is_told(folder, tmp_path):
    long = tmp_path / "long.txt"
    long.write_text("clocks were striking " * 20)
    gpt2 = load(folder / "gpt2")
    with pytest.raises(ConfigError, match=r"tokens in a row, and it has 24 positions; use rule=window or rule=harness"):
        perplexity(gpt2, PerplexityConfig(text=str(long)))
    assert total(gpt2, text=str(long), rule="harness") > 0
    torn = tmp_path / "torn"
    shutil.copytree(folder / "llama", torn)
    weights = load_file(torn / "model.safetensors")
    save_file({key: x for key, x in weights.items() if "layers.1.mlp" not in key}, torn / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks weights of its model \(model.layers.1.mlp"):
        load(torn)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="does not load as a causal language model"):
        load(tmp_path / "bad")
    nothing = tmp_path / "nothing"
    LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)).save_pretrained(nothing)
    with pytest.raises(DataError, match="holds no tokenizer"):
        load(nothing)
    small = LlamaConfig(**{**SIZES, "vocab_size": 200}, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    LlamaForCausalLM(small).save_pretrained(nothing)
    PreTrainedTokenizerFast.from_pretrained(folder / "llama").save_pretrained(nothing)
    with pytest.raises(DataError, match=r"does not fit a model of 200 ids"):
        load(nothing)
