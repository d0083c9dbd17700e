"""Encoding text, fast and exactly: the ids are those of `tokenizers`, by tiktoken where it is proved to give the same.

Where a tokenizer has an equal in tiktoken (`byte_level.py`), texts that the proof does not cover are still encoded by `tokenizers`,
one by one: those that a normaliser would change, that hold an added token that is no special one, characters of which the two
libraries' Unicode tables differ, or white space so long that tiktoken's regular expression gives up. So the ids are a function of
the tokenizer and the text, whichever way they were found.
"""

import json
import re
import unicodedata
from typing import Any

from data_prep.byte_level import Translation, Untranslatable, translate, unequal_characters
from llm.data.tokenizer import DOCUMENT_TOKEN, parse_tokenizer
from llm.errors import ConfigError, DataError

ENGINES = ("auto", "tokenizers")
# fancy_regex backs up through white space, a frame of its stack per character; it has a million
LONG_SPACE = 100_000
AWKWARD = (
    "",
    " ",
    "a",
    "\n",
    "Hello world! It's 12345 o'clock; we'LL see, they'Re here, I'M, 'tis, it'ſ",
    "  two   three    four\ttab\t\ttabs \n\n\n newlines \r\n\r\n  end  ",
    "\u00a0no-break\u2003em\u3000ideographic\u200bzero\u2028line\x85next",
    "e\u0301 o\u0308 \u1e9b\u0323 ﬁ ﬀ Å K ſ İ ı ß ẞ ǅ ʰ ª",
    "1 12 123 1234 12345678901234567890 ²³ ½ Ⅷ ٣٤٥ १२३ 3.14e-10 0x1F",
    "日本語のテキスト、中文字符。한국어 텍스트 ไทย العربية עברית हिन्दी ελληνικά кириллица",
    "👍🏽 👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 ☃️ ©®™ 𝕏 𐍈",
    "\x00\x01\x07\x1b[0m\x7f\ufeff\ufffd\ufffe\U0010ffff",
    "def f(x):\n    if x != 0 and not y:\n\t\treturn {'a': [1, 2]}  # comment\n\n\nclass A_b2(C): ...\n",
    "<html><!-- & --></html> https://example.org/a?b=c&d#e foo@bar.baz $x^2_{i+1}$ \\frac{}{} //// ---- ==== ....",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa AAAAaaaaAAAA camelCaseHTTPServer snake_case",
    "-" * 200 + " " * 200 + "\n" * 70 + "\t \n" * 30 + "=" * 3,
    "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVo" * 20,
)


class Encoder:
    """The ids of texts by one tokenizer; special tokens found in text are text.

    Args:
        tokenizer_json: the content of a tokenizer.json.
        engine: "auto", or "tokenizers" to leave tiktoken out.

    Attributes:
        name: "tiktoken" or "tokenizers". why: the reason, in words.

    Raises:
        DataError: content that is no tokenizer, or one that makes a special id from text in spite of all.
    """

    def __init__(self, tokenizer_json: bytes, engine: str = "auto"):
        if engine not in ENGINES:
            raise ConfigError(f"engine ({engine}) is unknown; use one of {', '.join(ENGINES)}")
        self._arguments = (tokenizer_json, engine)
        self._reference = parse_tokenizer(tokenizer_json)
        # as the library writes it, with every field that older files leave out
        content = json.loads(self._reference.to_str())
        self._probes = (*AWKWARD, *_literals(content["added_tokens"]))
        self._check_specials(content)
        self._translation: Translation | None = None
        self.name, self.why = "tokenizers", "it was asked for"
        if engine == "auto":
            self._take_tiktoken(content)

    def __reduce__(self) -> tuple[type, tuple[bytes, str]]:
        return Encoder, self._arguments

    def encode(self, texts: list[str]) -> list[list[int]]:
        """The ids of each text, without special tokens around them."""
        if self._translation is None:
            return self._by_tokenizers(texts)
        encode, table = self._translation.encoding.encode_ordinary, self._translation.ids
        found = [encode(text) if self._is_plain(text) else None for text in texts]
        if table is not None:
            found = [ids and [table[rank] for rank in ids] for ids in found]
        others = iter(self._by_tokenizers([text for text, ids in zip(texts, found, strict=True) if ids is None]))
        return [next(others) if ids is None else ids for ids in found]

    def check(self, texts: list[str]) -> None:
        """Compare with `tokenizers`, which is slow. Raises DataError where ids differ: it never changes sides midway."""
        for text, ours, theirs in zip(texts, self.encode(texts), self._by_tokenizers(texts), strict=True):
            if ours != theirs:
                at = next((k for k, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
                place = self._reference.decode(theirs[max(0, at - 8) : at + 8], skip_special_tokens=False)
                raise DataError(
                    f"encoder ({self.name}) must give the ids of tokenizers and differs at {place!r} (token {at} of a text of "
                    f"{len(text)} characters); install the versions of constraints.txt, and report the text"
                )

    def _take_tiktoken(self, content: dict[str, Any]) -> None:
        try:
            normalizer = content["normalizer"]
            if normalizer is not None and normalizer["type"] != "NFC":
                raise Untranslatable(f"its normaliser ({normalizer['type']}) may change any text")
            self._translation = translate(content)
            self._nfc = normalizer is not None
            self._words = _plain_words(content["added_tokens"])
            self._unequal = unequal_characters(self._translation.pattern)
            if min(self._unequal, default="\x80") < "\x80":
                raise Untranslatable("the libraries' regular expressions differ in ASCII")
            self.check(list(self._probes))
        except (Untranslatable, DataError) as reason:
            self._translation, self.why = None, str(reason)
            return
        self.name = "tiktoken"
        self.why = f"{self._translation.pieces} pieces, {self._translation.merges} merges proved the same"

    def _by_tokenizers(self, texts: list[str]) -> list[list[int]]:
        try:
            return [encoding.ids for encoding in self._reference.encode_batch_fast(texts, add_special_tokens=False)]
        except Exception as error:
            # the library has no class of its own for it
            raise DataError(f"tokenizer.json cannot encode all text ({error}); give it a token for what it does not know") from None

    def _is_plain(self, text: str) -> bool:
        """Whether the proof covers it."""
        if not text.isascii() and (self._unequal or self._nfc):
            characters = set(text)
            if not self._unequal.isdisjoint(characters):
                return False
            # what is no character to this Python may be composed with others by one library and not by the other
            if self._nfc and not (
                unicodedata.is_normalized("NFC", text) and all(unicodedata.category(c) != "Cn" for c in characters)
            ):
                return False
        return not (any(word in text for word in self._words) or (len(text) > LONG_SPACE and _has_long_space(text)))

    def _check_specials(self, content: dict[str, Any]) -> None:
        names = {token["content"] for token in content["added_tokens"] if token["special"]}
        # what stands for the unknown is made from text by its nature
        names = names - {_unknown(content["model"])} | {DOCUMENT_TOKEN}
        special = {self._reference.token_to_id(name) for name in names}
        for text, ids in zip(self._probes, self._by_tokenizers(list(self._probes)), strict=True):
            if made := special.intersection(ids):
                raise DataError(
                    f"tokenizer.json makes the special token {self._reference.id_to_token(made.pop())} from the text {text!r}; "
                    "text must never give a special id: mark the token as special, or take it out of the model's vocabulary"
                )


def _unknown(model: dict[str, Any]) -> str | None:
    return model["vocab"][model["unk_id"]][0] if model.get("unk_id") is not None else model.get("unk_token")


def _literals(added: list[dict[str, Any]]) -> list[str]:
    """Texts in which the names of special and other added tokens occur."""
    names = [DOCUMENT_TOKEN, *(token["content"] for token in added)]
    return names + [f"before{name} after {name}\n{name}{name}" for name in names]


def _plain_words(added: list[dict[str, Any]]) -> list[str]:
    """Added tokens that are no special ones: `tokenizers` looks for them in text."""
    words = {token["content"] for token in added if not token["special"]}
    return sorted(words | {unicodedata.normalize("NFC", word) for word in words})


def _has_long_space(text: str) -> bool:
    # a run that long covers one of these characters; few texts have white space at any
    samples = any(map(str.isspace, text[::LONG_SPACE]))
    return samples and any(len(run[0]) >= LONG_SPACE for run in re.finditer(r"\s+", text))
