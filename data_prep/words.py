"""Words and their n-grams, for comparing texts only: what is stored is never changed.

The normal form is that of FineWeb (datatrove 0.10.1, `utils/text.py: simplify_text`, its default): lower case, every number becomes
0, punctuation and control characters become spaces, diacritics go (NFD without Mn). Where datatrove then cuts words with a
tokenizer per language, words here end at spaces, and in scripts written without spaces each character is a word.

A word of bytes b_0 .. b_m has the hash mix(sum_i t[b_i] r^i) mod 2^64 with a table t of 64-bit numbers, which is a difference of
prefix sums, so numpy hashes all words of a text at once: at three times the speed of a dictionary of words. An n-gram's hash is the
same with words for bytes.
"""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

from llm.data.permutation import GOLDEN, mix

# datatrove's PUNCTUATION; the white space that it leaves out among the control characters separates words in any case
_CONTROL = "".join(map(chr, [*range(32), *range(127, 160)]))
_PUNCTUATION = "!/—”:％１〈&(、━\\【#%「」，】；+^]~“《„';’{|∶´[=-`*．（–？！：$～«〉,><》)?）。…@_.\"}►»" + _CONTROL
_SPACES = str.maketrans(dict.fromkeys(_PUNCTUATION, " "))
_NUMBER = re.compile(r"\d+(?:[.,،٫⎖⎗⎘]\d+)?")
# the same for ASCII, on bytes: lower case with 0 for digits, numbers other than a lone 0, punctuation
_ASCII_NUMBER = re.compile(rb"0(?:0*[.,]0+|0+)")
_ASCII_LOWER = bytes(range(256)).lower().translate(bytes.maketrans(b"0123456789", b"0" * 10))
_ASCII_SPACES = bytes(ord(" ") if chr(k) in _PUNCTUATION else k for k in range(256))
# Thai, Lao, Burmese, Khmer; kana, Han with its extensions
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


def normalise(text: str) -> bytes:
    """UTF-8 of the words, with one space or more between them."""
    if text.isascii():
        return _ASCII_NUMBER.sub(b"0", text.encode().translate(_ASCII_LOWER)).translate(_ASCII_SPACES)
    return b" ".join(map(_TOKENS.__getitem__, text.split()))


def _normalise_token(token: str) -> bytes:
    token = _NUMBER.sub("0", token.lower()).translate(_SPACES)
    token = "".join(c for c in unicodedata.normalize("NFD", token) if unicodedata.category(c) != "Mn")
    return _UNSPACED.sub(r" \g<0> ", token).encode(errors="surrogatepass")


class _Tokens(dict[str, bytes]):
    """Normal forms of what stands between white space: a cache of LIMIT entries of at most LENGTH characters, about 80 MB."""

    LIMIT, LENGTH = 1 << 18, 64

    def __missing__(self, token: str) -> bytes:
        found = _normalise_token(token)
        if len(token) <= self.LENGTH:
            if len(self) == self.LIMIT:
                self.clear()
            self[token] = found
        return found


_TOKENS = _Tokens()


def hash_ngrams(texts: Sequence[bytes], n: int) -> tuple[np.ndarray, np.ndarray]:
    """64-bit hashes of the word n-grams of each text, in order, given in the normal form.

    Returns:
        hashes: of all texts, one after the other; texts of fewer than n words have none.
        ends: offsets, one more than texts; those of text k are hashes[ends[k] : ends[k + 1]].
    """
    starts, words = _hash_words(b" ".join(texts))
    text_starts = np.cumsum([0, *(len(text) + 1 for text in texts)])
    lengths = np.diff(np.searchsorted(starts, text_starts))
    ends = np.cumsum([0, *np.maximum(lengths - n + 1, 0)]).astype(np.uint64)
    hashes = np.zeros(max(len(words) - n + 1, 0), dtype=np.uint64)
    for j in range(n):
        hashes *= _RATIO
        hashes += words[j : j + len(hashes)]
    # an n-gram that starts in the last n - 1 words of its text runs into the next one
    left = np.repeat(np.cumsum(lengths), lengths)[: len(hashes)] - np.arange(len(hashes))
    return mix(hashes[left >= n]), ends


# bytes hashed at once, at most but for a single longer word: memory is about 40 times that
_BLOCK = 1 << 16
# an odd ratio (Knuth's MMIX), its powers and those of its inverse modulo 2^64, and the table of the bytes
_RATIO = np.uint64(6364136223846793005)
_INVERSE = np.uint64(pow(int(_RATIO), -1, 1 << 64))
_POWERS = np.cumprod(np.full(_BLOCK, _RATIO))
_INVERSE_POWERS = np.cumprod(np.full(_BLOCK, _INVERSE))
_TABLE = mix(np.arange(1, 257, dtype=np.uint64) * np.uint64(GOLDEN))


def _hash_words(text: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Where each word starts, and its hash; block by block, cut at spaces."""
    starts, hashes, start = [], [], 0
    while start < len(text):
        end = text.rfind(b" ", start + 1, start + _BLOCK) if len(text) - start > _BLOCK else len(text)
        end = end if end > 0 else text.find(b" ", start + _BLOCK)
        end = end if end > 0 else len(text)
        found = _hash_block(text[start:end])
        starts.append(start + found[0])
        hashes.append(found[1])
        start = end
    return np.concatenate([np.empty(0, dtype=np.int64), *starts]), np.concatenate([np.empty(0, dtype=np.uint64), *hashes])


def _hash_block(text: bytes) -> tuple[np.ndarray, np.ndarray]:
    values = np.frombuffer(text, dtype=np.uint8)
    edges = np.flatnonzero(np.diff(values != ord(" "), prepend=False, append=False))
    starts, ends = edges[::2], edges[1::2]
    powers, inverse = _POWERS, _INVERSE_POWERS
    if len(values) > _BLOCK:
        powers, inverse = (np.cumprod(np.full(len(values), ratio)) for ratio in (_RATIO, _INVERSE))
    sums = np.zeros(len(values) + 1, dtype=np.uint64)
    np.cumsum(_TABLE[values] * powers[: len(values)], out=sums[1:])
    return starts, mix((sums[ends] - sums[starts]) * inverse[starts])
