"""The model card says what is known, and the reports of evaluations are read whichever form they have."""

import patterns

from launch.provenance import _figures
from llm.export.card import model_card

METADATA = {
    "format": "llama",
    "needs": "transformers>=4.57",
    "dtype": "bfloat16",
    "parity": {"largest_difference": {"full": 1e-7, "steps": 3e-6}, "bfloat16_error": {"bfloat16_full": 2e-3}},
    "licence": "apache-2.0",
    "step": 1000,
    "tokens_seen": 2_000_000,
    "command": "braid-pretrain config.yaml",
    "dataset": {"manifest": "abc", "tokens": 5_000, "documents": 7, "sources": {"web": {"licence": "CC0-1.0", "weight": 2.0}}},
    "evaluation": {"perplexity": {"bits_per_byte": 1.25}},
}


def test_a_card_with_everything():
    card = model_card("mine", patterns.model([patterns.layer("attention")] * 3), METADATA)
    wanted = """license: apache-2.0
tags: [braid, llama]
3 x attention
from_pretrained("mine")
no code is in this folder
Weights are bfloat16, but for decays, norms and gates' biases, which are float32.
at most 3.0e-06 in float32 (whole sequence, token by token from the cache); in bfloat16, by 2.0e-03, at most twice
Step 1,000, 2,000,000 tokens seen
braid-pretrain config.yaml
5,000 tokens in 7 documents (manifest `abc`)
| web | CC0-1.0 | 2 |
| perplexity | bits_per_byte | 1.25 |"""
    missing = [line for line in wanted.splitlines() if line not in card]
    assert not missing


def test_a_card_with_nothing_but_the_model():
    card = model_card(
        "mine",
        patterns.model([patterns.layer("mamba")]),
        {**METADATA, "format": "remote"} | dict.fromkeys(("licence", "command", "dataset", "evaluation"), None),
    )
    assert "trust_remote_code=True` runs that file and `configuration_braid.py`, nothing else" in card
    assert "license" not in card.split("---")[1]
    assert "## Data" not in card
    assert "## Evaluation" not in card


def test_figures_of_reports():
    assert _figures({"results": {"bits": {"value": 1.5, "standard_error": 0.1}, "tokens": 9}}) == {"bits": 1.5, "tokens": 9.0}
    assert _figures({"figures": {"acc": 0.5, "name": "x"}}) == {"acc": 0.5}
    assert _figures(None) == _figures({"curve": []}) == {}
