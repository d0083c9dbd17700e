"""Generation from the state is the full forward pass again and again; prompts are text, whatever they contain."""

from dataclasses import replace

import pytest
import torch

from llm.data import DOCUMENT_TOKEN, load_tokenizer
from llm.errors import ConfigError, DataError
from llm.generate import Sampling, choose, encode_prompt, generate, generate_text


def test_steps_from_the_state_are_full_passes(braid):
    model, prompt = braid(), [0, 5, 9, 200]
    tokens = list(prompt)
    for _ in range(20):
        tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    assert list(generate(model, prompt, Sampling(tokens=20, temperature=0))) == tokens[4:]


def test_a_seed_is_a_text(braid):
    model = braid()
    texts = [list(generate(model, [0, 1], Sampling(tokens=30, seed=seed))) for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_top_p_keeps_the_fewest_tokens_that_hold_it():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    drawn = {choose(logits, Sampling(top_p=0.75, temperature=1.0), torch.Generator().manual_seed(seed)) for seed in range(200)}
    assert drawn == {0, 1}


def test_a_special_token_in_a_prompt_is_text(braid, tokenizer):
    words = load_tokenizer(tokenizer)
    ids = encode_prompt(words, f"def {DOCUMENT_TOKEN}", 300)
    assert ids.count(words.token_to_id(DOCUMENT_TOKEN)) == 1
    text = "".join(generate_text(braid(), tokenizer, f"é{DOCUMENT_TOKEN}", Sampling(tokens=5)))
    assert text.startswith(f"é{DOCUMENT_TOKEN}")


def test_what_a_user_can_get_wrong(tokenizer):
    with pytest.raises(DataError, match="where the model has 10"):
        encode_prompt(load_tokenizer(tokenizer), "def", 10)
    for bad in ({"tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            replace(Sampling(), **bad).check()
