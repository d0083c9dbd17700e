"""What users of `transformers` do with a causal language model, done with an exported braid."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, pipeline

ROOT = Path(__file__).resolve().parents[2]
VOCABULARY = 300


def some_tokens(tokens=40, rows=2):
    return torch.randint(1, VOCABULARY, (rows, tokens), generator=torch.Generator().manual_seed(0))


def fresh(exported, **options):
    return AutoModelForCausalLM.from_pretrained(exported[1], trust_remote_code=True, **options)


def test_embedded_tokens_are_tokens(loaded):
    tokens = some_tokens()
    embedded = loaded.get_input_embeddings()(tokens)
    assert torch.equal(loaded(inputs_embeds=embedded).logits, loaded(tokens).logits)
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        loaded(tokens, inputs_embeds=embedded)
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "attention_mask": torch.ones_like(tokens)}
    assert torch.equal(loaded.generate(inputs_embeds=embedded, **settings), loaded.generate(tokens, **settings)[:, 40:])


def test_hidden_states_are_the_layers_streams(exported, loaded):
    ours, tokens = exported[0], some_tokens()
    states = loaded(tokens, output_hidden_states=True).hidden_states
    assert len(states) == ours.config.depth + 1
    torch.testing.assert_close(ours.logits(states[-1]), ours(tokens).logits, rtol=0, atol=1e-5)
    x = ours.embedding[tokens]
    for block, before in zip(ours.blocks, states, strict=False):
        torch.testing.assert_close(before, x, rtol=0, atol=1e-5)
        x, _ = block(x, None, None)


def test_logits_to_keep_and_plain_tuples(loaded):
    tokens = some_tokens()
    whole = loaded(tokens).logits
    for keep in (1, 7, torch.tensor([3, 39])):
        rows = slice(-keep, None) if isinstance(keep, int) else keep
        torch.testing.assert_close(loaded(tokens, logits_to_keep=keep).logits, whole[:, rows], rtol=0, atol=1e-6)
    assert torch.equal(loaded(tokens, return_dict=False)[0], whole)
    loss, logits = loaded(tokens, labels=tokens, use_cache=False, return_dict=False)
    assert torch.equal(logits, whole)
    assert loss.ndim == 0
    with pytest.raises(ValueError, match="no attention map"):
        loaded(tokens, output_attentions=True)


def test_checkpointed_activations_give_the_same_gradients(exported):
    tokens, gradients = some_tokens(), []
    for checkpointing in (False, True):
        model = fresh(exported).train()
        model._set_gradient_checkpointing(checkpointing)
        assert any(getattr(m, "gradient_checkpointing", False) for m in model.modules()) is checkpointing
        model(tokens, labels=tokens).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain)


def test_embeddings_grow(exported):
    model, tokens = fresh(exported), some_tokens()
    before = model(tokens).logits
    model.resize_token_embeddings(VOCABULARY + 5)
    assert model.config.vocab_size == model.config.braid["vocab_size"] == VOCABULARY + 5
    torch.testing.assert_close(model(tokens).logits[..., :VOCABULARY], before, rtol=0, atol=1e-6)
    assert model(tokens + 5).logits.shape[-1] == VOCABULARY + 5


def test_sharded_and_saved_again(exported, tmp_path):
    """`save_pretrained` keeps code, index and logits; the tied embedding lies there once."""
    model, tokens = fresh(exported), some_tokens()
    model.save_pretrained(tmp_path, max_shard_size="30KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert (tmp_path / "model.safetensors.index.json").is_file()
    names = [name for shard in shards for name in safe_open(shard, "pt").keys()]  # noqa: SIM118
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    assert (tmp_path / "modeling_braid.py").is_file()
    again = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True)
    assert torch.equal(again(tokens).logits, model(tokens).logits)


def test_bfloat16_generates_with_the_cache_as_without(exported):
    model, tokens = fresh(exported, dtype=torch.bfloat16), some_tokens()
    cache = model(tokens[:, :-1]).past_key_values
    last = model(tokens[:, -1:], past_key_values=cache).logits[:, 0]
    whole = model(tokens).logits[:, -1]
    exact = fresh(exported)(tokens).logits[:, -1]
    # from the cache no further from float32 than twice what one pass in bfloat16 is
    assert (last - exact).abs().max() <= 2 * (whole - exact).abs().max()


def test_pipeline_writes_text(exported):
    writer = pipeline("text-generation", str(exported[1]), trust_remote_code=True)
    out = writer(["def spam", "return eggs and"], max_new_tokens=5, do_sample=False, batch_size=2)
    assert [text[0]["generated_text"].startswith(start) for text, start in zip(out, ["def spam", "return"], strict=True)] == [
        True
    ] * 2


class Texts(Dataset):
    def __init__(self, tokenizer):
        self.ids = tokenizer("def spam(eggs): return eggs")["input_ids"]

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {"input_ids": self.ids, "labels": self.ids}


def test_trainer_lowers_the_loss_in_five_steps(exported, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(exported[1])
    settings = TrainingArguments(
        tmp_path,
        max_steps=5,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        logging_steps=1,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(fresh(exported), settings, train_dataset=Texts(tokenizer))
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 5
    assert losses[-1] < 0.8 * losses[0], losses


@pytest.mark.multirank
def test_code_runs_when_it_is_trusted_or_ours(exported):
    """In a process of its own: what is registered stays registered."""
    script = f"""
from transformers import AutoModelForCausalLM
try:
    AutoModelForCausalLM.from_pretrained({str(exported[1])!r}, trust_remote_code=False)
except ValueError as error:
    assert "trust_remote_code=True" in str(error), error
else:
    raise AssertionError("ran code that nobody trusts")
import llm.export.auto
model = AutoModelForCausalLM.from_pretrained({str(exported[1])!r})
assert type(model).__module__ == "llm.export.modeling", type(model)
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=100, check=True)
