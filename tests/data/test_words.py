"""Words for comparing texts: the published normal form, and hashes of n-grams that are as good as random."""

from math import sqrt
from string import ascii_lowercase

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep import words
from data_prep.words import hash_ngrams, normalise


@pytest.mark.parametrize(
    ("text", "normal"),
    # what datatrove 0.10.1's simplify_text(text).split() returns
    [
        ("The QUICK, brown--fox!", ["the", "quick", "brown", "fox"]),
        ("Straße_und\tCAFÉ…\x07ok", ["straße", "und", "cafe", "ok"]),
        ("22/7 or ١٢٣abc9", ["0", "0", "or", "0abc0"]),
        ("3.14 1.2.3 4,5.6 5. x", ["0", "0", "0", "0", "0", "0", "x"]),
        ("x\u0301 \u0301 y", ["x", "y"]),
        ("naïve “quotes” don't", ["naive", "quotes", "don", "t"]),
        ("Ünïcödé İstanbul ΣΑΣ", ["unicode", "istanbul", "σας"]),
        ("", []),
    ],
)
def test_words_are_normalised_as_published(text: str, normal: list[str]):
    assert normalise(text).decode().split() == normal


def test_scripts_without_spaces_have_a_word_per_character():
    assert normalise("東京タワー 高い、tower").decode().split() == [*"東京タワー高い", "tower"]


@given(text=st.text(st.characters(max_codepoint=127)))
def test_ascii_words_are_the_same_beside_others(text: str):
    assert [*normalise(text).split(), b"e"] == normalise(f"{text} é").split()


@given(texts=st.lists(st.lists(st.text("ab\u4e00", min_size=1)), max_size=6), n=st.integers(1, 4), block=st.integers(1, 64))
def test_equal_ngrams_and_no_others_have_equal_hashes(texts: list[list[str]], n: int, block: int):
    ngrams = [tuple(text[k : k + n]) for text in texts for k in range(len(text) - n + 1)]
    spaced = [" ".join(text).encode() for text in texts]
    expected, ends = hash_ngrams(spaced, n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "_BLOCK", block)
        hashes, _ = hash_ngrams(spaced, n)
    assert hashes.tolist() == expected.tolist()
    assert len(ngrams) == len(hashes) == ends[-1]
    assert np.diff(ends).tolist() == [max(0, len(text) - n + 1) for text in texts]
    assert len(set(ngrams)) == len(set(hashes.tolist())) == len(set(zip(ngrams, hashes.tolist(), strict=True)))


def test_hashes_are_as_good_as_random():
    spellings = sorted(
        {f"{a}{b}{c}" for a in ascii_lowercase for b in ascii_lowercase for c in ascii_lowercase}
        | {f"word{''.join(ascii_lowercase[int(d)] for d in str(k))}" for k in range(100_000)}
    )
    hashes = hash_ngrams([" ".join(spellings).encode()], 1)[0]
    assert len(np.unique(hashes)) == len(spellings)
    # of 64 bits each is set in half, in pairs independently; five standard deviations
    bits = 2.0 * ((hashes[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)).astype(float) - 1
    correlations = bits.T @ bits / len(bits) - np.eye(64)
    assert np.abs(correlations).max() < 5 / sqrt(len(bits))
    assert np.abs(bits.mean(0)).max() < 5 / sqrt(len(bits))
