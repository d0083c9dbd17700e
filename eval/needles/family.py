"""RULER's family of tasks (Hsieh et al., arXiv:2404.06654, sec. 3 and app. B), generated from a seed without network.

single 1-3     one needle: word -> number in noise, word -> number in text, word -> uuid in text
multikey 1-3   one of 4 needles in text; one needle among needles alone, words -> numbers; the same with uuids -> uuids
multivalue     a key with 4 values      multiquery     4 keys asked for
vt             variable tracking: a chain of 4 assignments in noise; all variables that have its value
cwe, fwe       the 10 common words of a list; the 3 most frequent made words of a text whose frequencies fall as rank^-2

Structure, numbers and answer lengths are RULER's, needles have its sentence; instructions, words and noise are our own, so that
figures compare models with each other, not with published tables. Question answering (its 12th and 13th) needs data sets.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import zeta

from eval.needles.haystack import NOISE, hidden, sentences_of
from eval.needles.words import DRAW, distinct, made_word, number, variable

Rng = np.random.Generator
# places that needles can have between the start and the end
DEPTHS = 40
# from this length on common and uncommon words are as frequent as in the paper
LONG = 4096


@dataclass(frozen=True)
class Item:
    """text: up to where the model goes on. references: what its answer should contain."""

    text: str
    references: list[str]


@dataclass(frozen=True)
class Kind:
    """make(rng, size, length, haystack): an item with `size` units (sentences, needles, words) around what is asked, for prompts of
    `length` tokens. answer: tokens that a model may write. least: units.
    """

    make: Callable[[Rng, int, int, list[str]], Item]
    answer: int
    least: int = 1


@dataclass(frozen=True)
class Needles:
    """keys, values: what they are. around: `noise`, `text` or `needles`. hidden_keys: in the haystack; of these the first `asked`
    are asked for, and each has `values_each`.
    """

    around: str
    keys: str
    values: str
    hidden_keys: int = 1
    values_each: int = 1
    asked: int = 1

    def __call__(self, rng: Rng, size: int, length: int, haystack: list[str]) -> Item:
        return self.item(rng, size, haystack, None)

    def item(self, rng: Rng, size: int, haystack: list[str], depth: float | None) -> Item:
        """depth: of the first needle; None: anywhere, like the others."""
        keys = distinct(rng, DRAW[self.keys], self.hidden_keys)
        values = distinct(rng, DRAW[self.values], self.hidden_keys * self.values_each)
        needles = [self.sentence(keys[k // self.values_each], value) for k, value in enumerate(values)]
        depths = rng.choice(np.linspace(0, 1, DEPTHS), len(needles), replace=False).tolist()
        if self.around == "needles":
            sentences = [self.sentence(_other(rng, self.keys, keys), _other(rng, self.values, values)) for _ in range(size)]
        else:
            sentences = sentences_of(NOISE if self.around == "noise" else haystack, size)
        context = hidden(sentences, needles, [depths[0] if depth is None else depth, *depths[1:]])
        references = values[: self.asked * self.values_each]
        return Item(self.question(context, keys[: self.asked], len(references) > 1), references)

    def sentence(self, key: str, value: str) -> str:
        return f"One of the special magic {self.values} for {key} is: {value}."

    def question(self, context: str, asked: list[str], several: bool) -> str:
        what = self.values if several else self.values[:-1]
        who = asked[0] if len(asked) == 1 else ", ".join(asked[:-1]) + f", and {asked[-1]}"
        be, some = ("are", "Some") if several else ("is", "A")
        return (
            f"{some} special magic {what} {be} hidden in the text below. Keep in mind what it says; a question about it follows.\n"
            f"{context}\nWhat {be} the special magic {what} for {who} in this text? "
            f"The special magic {what} for {who} in this text {be}"
        )


def _other(rng: Rng, kind: str, besides: list[str]) -> str:
    return distinct(rng, DRAW[kind], 1, besides)[0]


def variable_tracking(rng: Rng, size: int, length: int, haystack: list[str], hops: int = 4) -> Item:
    """With a worked example of few sentences in front."""
    example = _chain(rng, 10, hops)
    item = _chain(rng, size, hops)
    return Item(f"{example.text} {' '.join(example.references)}\n\n{item.text}", item.references)


def _chain(rng: Rng, size: int, hops: int) -> Item:
    names, value = distinct(rng, variable, hops + 1), number(rng)[:5]
    needles = [f"VAR {name} = {f'VAR {names[k - 1]}' if k else value}." for k, name in enumerate(names)]
    context = hidden(sentences_of(NOISE, size), needles, sorted(rng.random(len(needles)).tolist()))
    return Item(
        f"The text below assigns values to variables. Follow each assignment through the text.\n{context}\n"
        f"Which {len(names)} variables have the value {value}? The {len(names)} variables with the value {value} are:",
        names,
    )


def common_words(rng: Rng, size: int, length: int, haystack: list[str], common: int = 10) -> Item:
    """`size` uncommon words beside the common ones, with a worked example in front."""
    often, seldom = (30, 3) if length >= LONG else (6, 1)
    example = _word_list(rng, common, common, often // 2, 1)
    item = _word_list(rng, common, size, often, seldom)
    return Item(f"{example.text} {_numbered(example.references)}\n{item.text}", item.references)


def _word_list(rng: Rng, common: int, uncommon: int, often: int, seldom: int) -> Item:
    words = distinct(rng, made_word, common + uncommon)
    listed = rng.permutation(words[:common] * often + words[common:] * seldom).tolist()
    return Item(
        f"Below is a list of words, some of which come up more often than others. Find those.\n{_numbered(listed)}\n"
        f"Which {common} words are the most common in the list? The {common} most common words in the list are:",
        words[:common],
    )


def _numbered(words: list[str]) -> str:
    return " ".join(f"{n}. {word}" for n, word in enumerate(words, 1))


def frequent_words(rng: Rng, size: int, length: int, haystack: list[str], alpha: float = 2.0) -> Item:
    """Words of rank k come up `size * k^-alpha / zeta(alpha)` times; the first of them is dots, which are not asked for."""
    counts = word_counts(size, alpha)
    words = ["....", *distinct(rng, made_word, len(counts) - 1)]
    text = rng.permutation(np.repeat(words, counts)).tolist()
    return Item(
        f"The text below is written in code words. Count how often each of them comes up; dots mean nothing.\n{' '.join(text)}\n"
        "Which three code words come up most often? The three most frequent code words are:",
        words[1:4],
    )


def word_counts(size: int, alpha: float) -> np.ndarray:
    """Of ranks 1, 2, ... as long as they come up at all."""
    counts = (size * np.arange(1, size + 1) ** -alpha / zeta(alpha)).astype(int)
    return counts[counts > 0]


KINDS: dict[str, Kind] = {
    "single_1": Kind(Needles("noise", "words", "numbers"), 128),
    "single_2": Kind(Needles("text", "words", "numbers"), 128),
    "single_3": Kind(Needles("text", "words", "uuids"), 128),
    "multikey_1": Kind(Needles("text", "words", "numbers", hidden_keys=4), 128),
    "multikey_2": Kind(Needles("needles", "words", "numbers"), 128),
    "multikey_3": Kind(Needles("needles", "uuids", "uuids"), 128),
    "multivalue": Kind(Needles("text", "words", "numbers", values_each=4), 128),
    "multiquery": Kind(Needles("text", "words", "numbers", hidden_keys=4, asked=4), 128),
    "vt": Kind(variable_tracking, 30),
    "cwe": Kind(common_words, 120),
    # so many that the 4th word, the last that is asked for, is more frequent than the 5th
    "fwe": Kind(frequent_words, 50, least=100),
}
