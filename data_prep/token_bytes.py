"""How many bytes of text each id stands for."""

import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from data_prep.byte_level import ALPHABET
from llm.data.tokenizer import parse_tokenizer

BYTE_FALLBACK = re.compile(r"<0x[0-9A-F]{2}>")


def byte_lengths(tokenizer_json: bytes) -> np.ndarray:
    """int64 [vocabulary]: bytes that each id adds to a text; 0 for ids that stand for nothing.

    Exact for byte-level tokenizers. For others, what a token is when it stands alone: a byte of a byte fallback is one, the mark of
    a space one too.
    """
    content = json.loads(parse_tokenizer(tokenizer_json).to_str())
    added = {token["id"]: token["content"] for token in content["added_tokens"]}
    vocabulary = content["model"]["vocab"]
    names = (
        {id: name for name, id in vocabulary.items()} if isinstance(vocabulary, dict) else dict(enumerate(p[0] for p in vocabulary))
    )
    exact = _is_byte_level(content)
    lengths = np.zeros(max([*names, *added]) + 1, dtype=np.int64)
    for id, name in names.items():
        lengths[id] = len(name) if exact and ALPHABET.keys() >= set(name) else _length(name)
    for id, text in added.items():
        lengths[id] = len(text.encode())
    return lengths


def _length(name: str) -> int:
    return 1 if BYTE_FALLBACK.fullmatch(name) else len(name.replace("▁", " ").encode())


def text_sizes(tokenizer_json: bytes) -> Callable[[np.ndarray], int]:
    """ids of a document -> UTF-8 bytes of its text."""
    tokenizer = parse_tokenizer(tokenizer_json)
    if _is_byte_level(json.loads(tokenizer.to_str())):
        lengths = byte_lengths(tokenizer_json)
        return lambda ids: int(lengths[ids].sum())
    return lambda ids: len(tokenizer.decode(ids.tolist(), skip_special_tokens=False).encode())


def _is_byte_level(content: dict[str, Any]) -> bool:
    """Whether the tokens' bytes, put together, are the text; then lengths add up exactly."""
    return (content["decoder"] or {}).get("type") == "ByteLevel"
