"""Encoding text with a tokenizer.json."""

from llm.data.tokenizer import parse_tokenizer


class Encoder:
    """Text -> ids; special tokens in text stay text."""

    name = "tokenizers"

    def __init__(self, tokenizer_json: bytes):
        self._tokenizer = parse_tokenizer(tokenizer_json)

    def encode(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
