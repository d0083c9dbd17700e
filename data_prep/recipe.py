"""A recipe: which text becomes which dataset, and how."""

import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass, field
from typing import Any

from omegaconf import MISSING, OmegaConf

from data_prep.decontaminate import DecontaminationConfig
from data_prep.dedup import DedupConfig
from data_prep.filters import FilterConfig
from data_prep.place import check_name
from data_prep.readers import READERS
from llm.config import load
from llm.errors import ConfigError

# say where and how, and never change a byte of the dataset
PLACE = ("out", "workers")


@dataclass(frozen=True)
class SourceConfig:
    """read: a kind of reader and its settings. weight: share of the training sequences, relative to the other sources'.
    filters: what a document must pass.
    """

    read: Any = MISSING
    weight: float = 1.0
    licence: str = "unknown"
    filters: FilterConfig = field(default_factory=FilterConfig)


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
    """out: the dataset's folder. sources: by name. dedup, decontamination: null to leave the step out. validation: share of
    documents held out, by the hash of their text. shard_tokens: tokens of a shard at most, unless one document has more.
    workers: processes; null: as many as this process may use cores.
    """

    out: str = MISSING
    sources: dict[str, SourceConfig] = MISSING
    cleaning: CleaningConfig = field(default_factory=CleaningConfig)
    dedup: DedupConfig | None = field(default_factory=DedupConfig)
    decontamination: DecontaminationConfig | None = None
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    validation: float = 0.02
    shard_tokens: int = 1 << 26
    workers: int | None = None

    @property
    def hash(self) -> str:
        """sha256 of everything but PLACE: two folders made by the same recipe hold the same bytes."""
        values = {key: value for key, value in asdict(self).items() if key not in PLACE}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

    @property
    def processes(self) -> int:
        return self.workers or len(os.sched_getaffinity(0))

    def to_yaml(self) -> str:
        """Without PLACE and what has no effect."""
        values = OmegaConf.to_container(OmegaConf.structured(self))
        for name in PLACE:
            del values[name]
        for name, source in self.sources.items():
            for section in source.filters.unused():
                del values["sources"][name]["filters"][section]
        return OmegaConf.to_yaml(values)


def load_recipe(words: list[str]) -> Recipe:
    """The recipe in `FILE.yaml... key.path=value...`. Raises ConfigError."""
    recipe = load(Recipe, words, {"sources.*.read": READERS})
    if not recipe.sources:
        raise ConfigError("sources (none) must name at least one source; write sources: {NAME: {read: {kind: text, root: FOLDER}}}")
    for name, source in recipe.sources.items():
        _check_source(name, source)
    if recipe.dedup is not None:
        recipe.dedup.check("dedup")
    if recipe.decontamination is not None:
        recipe.decontamination.check("decontamination")
    if not 0 <= recipe.validation < 1:
        raise ConfigError(f"validation ({recipe.validation}) is the share of documents held out; use 0 <= validation < 1")
    if recipe.shard_tokens < 1:
        raise ConfigError(f"shard_tokens ({recipe.shard_tokens}) must be positive; 67108864 makes shards of 128 MB")
    if recipe.workers is not None and recipe.workers < 1:
        raise ConfigError(f"workers ({recipe.workers}) are processes; use 1 or more, or null for one a core")
    _check_tokenizer(recipe.tokenizer)
    return recipe


def _check_source(name: str, source: SourceConfig) -> None:
    where = f"sources.{name}"
    check_name(name, where)
    if not 0 <= source.weight < math.inf:
        law = "must not be negative or infinite"
        raise ConfigError(f"{where}.weight ({source.weight}) {law}; use 0 to keep it out of training")
    source.read.check(f"{where}.read")
    if getattr(source.read, "metadata", None):
        raise ConfigError(f"{where}.read.metadata has no effect, for shards hold tokens alone; remove it")
    source.filters.check(f"{where}.filters")


def _check_tokenizer(tokenizer: TokenizerConfig) -> None:
    if tokenizer.sample_bytes < 1:
        raise ConfigError(f"tokenizer.sample_bytes ({tokenizer.sample_bytes}) must be positive; 8000000 is a good start")
    if tokenizer.path is None and tokenizer.vocabulary < 257:
        raise ConfigError(f"tokenizer.vocabulary ({tokenizer.vocabulary}) must hold 256 bytes and the document token; use >= 257")
