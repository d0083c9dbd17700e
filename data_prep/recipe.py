"""A recipe: which text becomes which dataset, and how."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field
from typing import Any

from omegaconf import MISSING

from data_prep.sources import SOURCES
from llm.config import load
from llm.errors import ConfigError


@dataclass(frozen=True)
class CleaningConfig:
    """nfc: bring text to Unicode normal form C. Line ends become `\\n` and texts without a visible character are dropped always."""

    nfc: bool = True


@dataclass(frozen=True)
class TokenizerConfig:
    """path: a tokenizer.json to take as it is; without one a byte-level BPE is trained.

    vocabulary: ids of the trained one. sample_bytes: text it is trained on, at most about this much, chosen by hash.
    """

    path: str | None = None
    vocabulary: int = 1024
    sample_bytes: int = 8_000_000


@dataclass(frozen=True)
class Recipe:
    """out: the dataset's folder. sources: by name, each with its `kind`. validation: share of documents held out, by the hash of
    their text. shard_tokens: tokens of a shard at most, unless one document has more.
    """

    out: str = MISSING
    sources: dict[str, Any] = MISSING
    cleaning: CleaningConfig = field(default_factory=CleaningConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    validation: float = 0.02
    shard_tokens: int = 1 << 26

    @property
    def hash(self) -> str:
        """sha256 of everything but `out`: two folders made by the same recipe hold the same bytes."""
        values = {key: value for key, value in asdict(self).items() if key != "out"}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def load_recipe(words: list[str]) -> Recipe:
    """The recipe in `FILE.yaml... key.path=value...`. Raises ConfigError."""
    recipe = load(Recipe, words, {"sources.*": SOURCES})
    if not recipe.sources:
        raise ConfigError("sources (none) must name at least one source; write sources: {NAME: {kind: files, files: [...]}}")
    for name, source in recipe.sources.items():
        if not 0 <= source.weight < math.inf:
            law = "must not be negative or infinite"
            raise ConfigError(f"sources.{name}.weight ({source.weight}) {law}; use 0 to keep it out of training")
    if not 0 <= recipe.validation < 1:
        raise ConfigError(f"validation ({recipe.validation}) is the share of documents held out; use 0 <= validation < 1")
    if recipe.shard_tokens < 1:
        raise ConfigError(f"shard_tokens ({recipe.shard_tokens}) must be positive; 67108864 makes shards of 128 MB")
    if recipe.tokenizer.sample_bytes < 1:
        raise ConfigError(f"tokenizer.sample_bytes ({recipe.tokenizer.sample_bytes}) must be positive; 8000000 is a good start")
    if recipe.tokenizer.path is None and recipe.tokenizer.vocabulary < 257:
        raise ConfigError(
            f"tokenizer.vocabulary ({recipe.tokenizer.vocabulary}) must hold 256 bytes and the document token; use >= 257"
        )
    return recipe
