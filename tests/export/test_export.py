"""An exported folder: verified, native to `transformers`, made of the sources themselves, or not there at all."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, DynamicCache

from llm.data import DOCUMENT_TOKEN
from llm.errors import CheckpointError, DataError
from llm.export import folder as exporter
from llm.export.assemble import modeling_source
from llm.init import ROLES, parameter_roles

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY = 300


@pytest.mark.timeout(300)
def test_it_was_verified_in_a_process_of_its_own(exported):
    metadata = json.loads((exported[1] / "training_metadata.json").read_text())
    assert set(metadata["parity"]["largest_difference"]) == {"full", "steps", "chunks", "left_padded"}
    assert max(metadata["parity"]["largest_difference"].values()) <= 1e-5
    assert metadata["step"] == 3
    assert not list(exported[1].glob("*.bin")) + list(exported[1].glob("*.pt"))


def test_logits_and_loss_are_ours(exported, loaded):
    tokens = torch.randint(VOCABULARY, (2, 70), generator=torch.Generator().manual_seed(0))
    ours = exported[0](tokens).logits
    out = loaded(tokens, labels=tokens)
    torch.testing.assert_close(out.logits, ours, rtol=0, atol=1e-5)
    want = torch.nn.functional.cross_entropy(ours[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(out.loss, want)


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_from_the_cache_is_generation_without(loaded, beams):
    tokens = torch.randint(1, VOCABULARY, (2, 30), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[0, :11] = 0
    settings = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "num_beams": beams, "eos_token_id": None}
    cached = loaded.generate(tokens, use_cache=True, **settings)
    assert torch.equal(cached, loaded.generate(tokens, use_cache=False, **settings))


def test_padding_on_the_left_changes_nothing(loaded):
    tokens = torch.randint(1, VOCABULARY, (1, 20), generator=torch.Generator().manual_seed(0))
    padded = torch.cat([torch.zeros(1, 13, dtype=torch.long), tokens], 1)
    mask = (torch.arange(33) >= 13).long()[None]
    torch.testing.assert_close(loaded(padded, attention_mask=mask).logits[:, 13:], loaded(tokens).logits, rtol=0, atol=1e-5)


def test_tokenizer_opens_documents_and_takes_special_tokens_as_text(exported):
    tokenizer = AutoTokenizer.from_pretrained(exported[1], trust_remote_code=True)
    start = tokenizer.convert_tokens_to_ids(DOCUMENT_TOKEN)
    ids = tokenizer(f"def {DOCUMENT_TOKEN} spam")["input_ids"]
    assert ids[0] == start
    assert start not in ids[1:]
    assert tokenizer.decode(ids, skip_special_tokens=True) == f"def {DOCUMENT_TOKEN} spam"


def test_the_maths_exists_once(tmp_path):
    """A constant changed in an op is changed in the export."""
    shutil.copytree(ROOT / "llm", tmp_path / "llm", ignore=shutil.ignore_patterns("__pycache__"))
    assert "\n    CHUNK = 64\n" in modeling_source(tmp_path)
    op = tmp_path / "llm" / "ops" / "linear" / "chunk.py"
    op.write_text(op.read_text().replace("CHUNK = 64", "CHUNK = 48"))
    assert "\n    CHUNK = 64\n" not in modeling_source(tmp_path)
    assert "\n    CHUNK = 48\n" in modeling_source(tmp_path)


@pytest.mark.timeout(300)
def test_a_model_that_reloads_otherwise_is_refused(braid, tokenizer, tmp_path, monkeypatch):
    right = exporter.assemble.modeling_source
    monkeypatch.setattr(exporter.assemble, "modeling_source", lambda root: right(root).replace("theta ** (-", "1.01 * theta ** (-"))
    with pytest.raises(CheckpointError, match="differ from the model's"):
        exporter.export_folder(braid(), tokenizer, tmp_path / "out", {}, context=64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.timeout(300)
def test_an_older_folder_gives_way(braid, tokenizer, tmp_path):
    (tmp_path / "out").mkdir()
    for name in ("stale", "config.json", "training_metadata.json"):
        (tmp_path / "out" / name).touch()
    exporter.export_folder(braid(), tokenizer, tmp_path / "out", {}, context=64, options=exporter.ExportOptions(replace=True))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "stale" not in names
    assert {"config.json", "model.safetensors", "modeling_braid.py", "training_metadata.json"} <= names


def test_what_a_user_can_get_wrong(braid, tokenizer, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(CheckpointError, match="exists already"):
        exporter.export_folder(braid(), tokenizer, tmp_path / "there", {}, context=64)
    with pytest.raises(DataError, match="does not fit a model of 100 ids"):
        exporter.export_folder(braid(vocab_size=100), tokenizer, tmp_path / "out", {}, context=64)
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_a_cache_goes_on_with_several_tokens(loaded):
    tokens = torch.randint(1, VOCABULARY, (2, 40), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[0, :7] = 0
    whole = loaded(tokens, attention_mask=mask, use_cache=False).logits
    for name in ("past_key_values", "cache"):
        cache = loaded(tokens[:, :25], attention_mask=mask[:, :25]).past_key_values
        later = loaded(tokens[:, 25:], attention_mask=mask, **{name: cache}).logits
        torch.testing.assert_close(later, whole[:, 25:], rtol=0, atol=1e-5)


def test_a_cache_that_cannot_go_on_says_so(loaded):
    tokens = torch.ones(1, 6, dtype=torch.long)
    cache = loaded(tokens, attention_mask=torch.tensor([[1, 1, 1, 1, 0, 0]])).past_key_values
    with pytest.raises(ValueError, match="pad on the left"):
        loaded(tokens[:, :1], past_key_values=cache)
    with pytest.raises(ValueError, match="must be a BraidCache"):
        loaded(tokens, past_key_values=DynamicCache())
    with pytest.raises(ValueError, match="states: this model knows its cache as"):
        loaded(tokens, states=DynamicCache())
    with pytest.raises(ValueError, match="cache_implementation"):
        loaded.generate(tokens, cache_implementation="static", max_new_tokens=2)


def test_decays_norms_and_biases_stay_float32(exported):
    model = AutoModelForCausalLM.from_pretrained(exported[1], trust_remote_code=True, dtype=torch.bfloat16)
    pinned = {name for name, role in parameter_roles(exported[0]).items() if ROLES[role].float32}
    dtypes = {name.removeprefix("model."): parameter.dtype for name, parameter in model.named_parameters()}
    assert pinned
    assert dtypes == {name: torch.float32 if name in pinned else torch.bfloat16 for name in dtypes}
    assert torch.isfinite(model(torch.ones(1, 5, dtype=torch.long)).logits).all()


def test_a_fresh_model_starts_as_ours_do(exported):
    config = AutoConfig.from_pretrained(exported[1], trust_remote_code=True)
    fresh = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    for name, role in parameter_roles(fresh.model).items():
        assert torch.isfinite(fresh.model.get_parameter(name)).all(), name
        if role == "norm":
            assert (fresh.model.get_parameter(name) == 1).all(), name
