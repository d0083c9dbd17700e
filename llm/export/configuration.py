"""The configuration of an exported model."""

from typing import Any

from transformers import PretrainedConfig


class BraidConfig(PretrainedConfig):
    """braid: the `model` section of the training config, with every default spelled out."""

    model_type = "braid"
    keys_to_ignore_at_inference = ("past_key_values", "cache")

    def __init__(self, braid: dict[str, Any] | None = None, use_cache: bool = True, **kwargs: Any):
        self.braid = braid or {}
        self.vocab_size = self.braid.get("vocab_size", 0)
        self.hidden_size = self.braid.get("width", 0)
        self.num_hidden_layers = self.braid.get("depth", 0)
        self.use_cache = use_cache
        kwargs.setdefault("tie_word_embeddings", self.braid.get("tie_embeddings", True))
        super().__init__(**kwargs)
