"""A byte-level BPE tokenizer.json as a tiktoken `Encoding` with the same ids, by proof and not by trial.

The two programs differ in what they merge: `tokenizers` the pairs on its list, tiktoken any two neighbours whose bytes together are
a token. They agree on every text if for every token t, once its bytes are merged alone and by the list, the last step joins a pair
of the list, in an order that is the order of ranks. For a pair of neighbours in any text can only have come about by the steps that
bring it about alone: merging is local. So tiktoken's choices are the list's, with the same priorities. Tokens that no merging
reaches are left out, except where `ignore_merges` looks whole pieces up first, as tiktoken always does.

Cutting a text into pieces is one regular expression; those below are equal where the two regex engines' character classes are,
which `unequal_characters` finds out for all of Unicode.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import tiktoken
from tokenizers import Regex, normalizers

# whole pieces of text, by the name of who published them
WHOLE = r"(?s:.+)"
GPT2 = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
# `Digits(individual_digits)` before GPT-2's, as in StarCoder and SmolLM: white space may now end before a digit
GPT2_DIGITS = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+"""
_WORDS = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
_CL100K = r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|%s| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"""
_CASED = r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]%s[\p{Ll}\p{Lm}\p{Lo}\p{M}]%s(?i:'s|'t|'re|'ve|'m|'ll|'d)?"""
_O200K = "|".join(
    [_CASED % ("*", "+"), _CASED % ("+", "*"), r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"]
)
PATTERNS = {
    GPT2: "GPT-2's",
    _WORDS % r"\p{N}{1,3}": "Llama 3's",
    _WORDS % r"\p{N}": "Qwen 2's",
    _CL100K % r"\p{N}{1,3}": "GPT-4's",
    _CL100K % r"\p{N}{1,2}": "nanochat's",
    _O200K: "GPT-4o's",
}
# the rank of a pair that is not on the list
NEVER = 1 << 62
CLASSES = "L N M Lu Lt Lm Lo Ll".split()


class Untranslatable(Exception):
    """Why a tokenizer has no equal in tiktoken; the end of the sentence "encoding by tokenizers, since ..."."""


@dataclass(frozen=True)
class Translation:
    """encoding: without special tokens. ids: of tiktoken's ranks, None where they are the same. merges: how many were proved.

    pattern: cuts texts into pieces. pieces: whose it is.
    """

    encoding: tiktoken.Encoding
    ids: list[int] | None
    pattern: str
    pieces: str
    merges: int


def translate(content: dict[str, Any]) -> Translation:
    """The parsed tokenizer.json, as the library writes it, for tiktoken. Raises Untranslatable.

    Normaliser, added tokens and characters of unequal classes are the caller's to look out for, text by text.
    """
    pattern, pieces = _pattern(content["pre_tokenizer"])
    model = content["model"]
    _check_model(model)
    special = {token["content"] for token in content["added_tokens"]}
    ranks, merges = _ranks(model, special)
    order = sorted(ranks, key=ranks.__getitem__)
    ids = [model["vocab"][token] for token in order]
    ordered = ids == sorted(ids)
    table = {_bytes(token): id if ordered else rank for rank, (token, id) in enumerate(zip(order, ids, strict=True))}
    encoding = tiktoken.Encoding("braid", pat_str=pattern, mergeable_ranks=table, special_tokens={})
    return Translation(encoding, None if ordered else ids, pattern, pieces, merges)


def _pattern(pre_tokenizer: dict[str, Any] | None) -> tuple[str, str]:
    steps = pre_tokenizer and (pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer])
    if not steps or steps[-1]["type"] != "ByteLevel":
        raise Untranslatable("its pre-tokenizer does not end with ByteLevel")
    *before, last = steps
    if last["add_prefix_space"]:
        raise Untranslatable("it puts a space before the text")
    regex = last.get("use_regex", True)
    match [step["type"] for step in before]:
        case []:
            return (GPT2, PATTERNS[GPT2]) if regex else (WHOLE, "whole texts as")
        case ["Digits"] if regex and before[0]["individual_digits"]:
            return GPT2_DIGITS, "single digits and GPT-2's"
        case ["Split"] if not regex:
            return _split_pattern(before[0])
    raise Untranslatable("its pre-tokenizer is a sequence of other steps than one Split and ByteLevel")


def _split_pattern(split: dict[str, Any]) -> tuple[str, str]:
    # patterns here match every character, so that nothing lies between matches
    pattern = split["pattern"].get("Regex")
    if (split["behavior"], split["invert"]) not in {("Isolated", False), ("Removed", True)} or pattern not in PATTERNS:
        raise Untranslatable(f"its Split is none of {', '.join(PATTERNS.values())}")
    return pattern, PATTERNS[pattern]


def _check_model(model: dict[str, Any]) -> None:
    if model["type"] != "BPE":
        raise Untranslatable(f"its model is {model['type']}, not BPE")
    for setting in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(setting):
            raise Untranslatable(f"its model has {setting}")
    if not ALPHABET.keys() <= model["vocab"].keys():
        raise Untranslatable("its vocabulary lacks single bytes")


def _ranks(model: dict[str, Any], special: set[str]) -> tuple[dict[str, int], int]:
    """Ranks of the tokens that tiktoken is to know, bytes first, and how many of them are merged."""
    pairs = (tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"])
    order = {pair: rank for rank, pair in enumerate(pairs)}
    size = len(order)
    # bytes come before every merge, tokens out of merging's reach behind
    ranks = {byte: rank - 256 for rank, byte in enumerate(ALPHABET)}
    whole = size
    for token in model["vocab"]:
        if len(token) < 2 or not ALPHABET.keys() >= set(token):
            continue
        rank, parts = _merge(token, order)
        if parts == 1:
            ranks[token] = rank
        elif model.get("ignore_merges") and token not in special:
            if parts == 2:
                raise Untranslatable(f"its token {token!r} is looked up whole and must not be merged")
            ranks[token] = whole = whole + 1
    return ranks, sum(0 <= rank < size for rank in ranks.values())


def _merge(token: str, order: dict[tuple[str, ...], int]) -> tuple[int, int]:
    """The rank of the last step of merging the token's characters, and how many parts are left."""
    parts, last = list(token), -1
    ranks = [order.get(pair, NEVER) for pair in pairwise(parts)]
    while ranks and (rank := min(ranks)) < NEVER:
        last, k = rank, ranks.index(rank)
        parts[k : k + 2] = [parts[k] + parts[k + 1]]
        del ranks[k]
        for left in (k - 1, k):
            if 0 <= left < len(ranks):
                ranks[left] = order.get((parts[left], parts[left + 1]), NEVER)
    return last, len(parts)


def _alphabet() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for (GPT-2's `bytes_to_unicode`)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + k): byte for k, byte in enumerate(others)}


ALPHABET = _alphabet()


def _bytes(token: str) -> bytes:
    return bytes(ALPHABET[character] for character in token)


def unequal_characters(pattern: str) -> frozenset[str]:
    """Characters that the two regex engines put into different classes of `pattern`; none where their Unicode is of one age."""
    classes = [rf"\p{{{name}}}" for name in CLASSES if rf"\p{{{name}}}" in pattern]
    return frozenset().union(*map(_unequal, [*classes, r"\s"]))


@lru_cache
def _unequal(name: str) -> set[str]:
    # no version of Unicode has characters elsewhere, besides surrogates and private use
    everything = "".join(map(chr, (*range(0xD800), *range(0xF900, 0x40000), *range(0xE0000, 0xE1000))))
    single_bytes = {bytes([byte]): byte for byte in range(256)}
    tiktokens = tiktoken.Encoding("class", pat_str=name, mergeable_ranks=single_bytes, special_tokens={})
    others = normalizers.Replace(Regex(rf"[^{name}]"), "").normalize_str(everything)
    return set(bytes(tiktokens.encode_ordinary(everything)).decode()) ^ set(others)
