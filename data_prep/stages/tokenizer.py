"""Stage 3: the tokenizer, taken as it is given or trained on a sample of the training documents that are left."""

from functools import partial
from itertools import chain
from pathlib import Path

import xxhash

from data_prep.bpe import train_bpe
from data_prep.encoder import Encoder
from data_prep.recipe import Recipe, TokenizerConfig
from data_prep.stages.duplicates import kept_documents
from data_prep.stages.work import Work
from data_prep.workers import Track, Workers
from llm.data.write import tokenizer_info
from llm.errors import DataError
from llm.whole_file import write_bytes

TRAIN, VALIDATION = SPLITS = ("train", "validation")


def run(recipe: Recipe, work: Work, workers: Workers, track: Track, text_bytes: int) -> None:
    """text_bytes: of all documents that are left. Raises DataError: the tokenizer given is none."""
    if work.tokenizer.exists():
        return
    content = given(recipe.tokenizer)
    if content is None:
        share = recipe.tokenizer.sample_bytes / max(1, text_bytes)
        parts = range(len(work.sources))
        sample = workers.in_order(partial(sample_part, work=work, share=share, validation=recipe.validation), parts)
        content = train_bpe(chain.from_iterable(track(sample, len(parts))), recipe.tokenizer.vocabulary)
    write_bytes(work.tokenizer, content)


def given(config: TokenizerConfig) -> bytes | None:
    """The tokenizer.json that the recipe names. Raises DataError: it is none, lacks the document token, or makes it from text."""
    if config.path is None:
        return None
    if not Path(config.path).is_file():
        raise DataError(f"tokenizer.path ({config.path}) does not exist; leave it out to train one")
    content = Path(config.path).read_bytes()
    tokenizer_info(content, config.path)
    # what it refuses is refused before hours of work
    Encoder(content)
    return content


def sample_part(part: int, work: Work, share: float, validation: float) -> list[str]:
    texts = (text for _, text in kept_documents(work, part))
    return [text for text in texts if fraction(text, seed=1) < share and split(text, validation) == TRAIN]


def split(text: str, validation: float) -> str:
    """By the text alone: a document never changes sides when others come or go, and its copies go with it."""
    return VALIDATION if fraction(text) < validation else TRAIN


def fraction(text: str, seed: int = 0) -> float:
    """The text's hash as a number in [0, 1)."""
    return xxhash.xxh3_64_intdigest(text.encode(), seed=seed) / 2**64
