"""RULER's family: what is asked is in the text, as often as it should be, within the length; who reads it scores 1."""

import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from lm_eval.tasks.ruler.common_utils import string_match_all

from eval.needles.family import DEPTHS, KINDS, Needles, word_counts
from eval.needles.fit import most_units
from eval.needles.haystack import hidden, read_haystack
from eval.needles.needle import NeedleConfig, needle
from eval.needles.ruler import RulerConfig, draw_ruler, ruler, score_of
from eval.subject import Subject
from eval.texts import TextConfig
from llm.errors import ConfigError, DataError
from llm.train.world import World

# libraries of others warn about each other
pytestmark = pytest.mark.filterwarnings("ignore")

TEXT = [f"Sentence number {k} of this tale is here." for k in range(50)]
SENTENCE = re.compile(r"One of the special magic (\w+) for (\S+) is: (\S+)\.")


class Reader:
    """Reads characters as tokens; writes what `answer` says of the text so far, character by character."""

    vocab_size, opening, packs, positions, window, device = 128, 0, False, 1 << 20, None, torch.device("cpu")

    def __init__(self, answer):
        self.answer, self.longest = answer, 0

    def encode(self, text):
        return [ord(c) for c in text]

    def decode(self, ids):
        return "".join(map(chr, ids))

    def logits(self, tokens_BT, state=None, starts_BT=None, last_only=False):
        fresh = state is None
        read = tokens_BT if fresh else torch.cat([state["read"], tokens_BT], 1)
        if fresh or tokens_BT.shape[1] == 4096 or state["texts"] is None:
            texts = [self.answer(self.decode(row[1:].tolist())) for row in read]
            state = {"begin": read.shape[1], "texts": texts}
        logits = torch.zeros(len(read), tokens_BT.shape[1], self.vocab_size)
        for row, text in enumerate(state["texts"]):
            for t in range(tokens_BT.shape[1]):
                at = read.shape[1] - tokens_BT.shape[1] + t + 1 - state["begin"]
                if at >= 0:
                    logits[row, t, ord(text[at]) if at < len(text) else 0] = 9
        self.longest = max(self.longest, read.shape[1])
        return (logits[:, -1:] if last_only else logits), {**state, "read": read}


def subject_of(model, tmp_path) -> Subject:
    return Subject("test", model, tmp_path, {}, World(0, 1, torch.device("cpu")))


def read_needles(text: str) -> str:
    """All values of the keys that the question names."""
    question = text[text.rindex("\n") :]
    return " " + " ".join(value for _, key, value in SENTENCE.findall(text) if f"{key} " in question or f"{key}," in question)


def solve(text: str) -> str:
    if "code words" in text:
        words = Counter(text.split("\n")[1].split())
        return " ".join(word for word, _ in words.most_common(4)[1:])
    if "list of words" in text:
        listed = text.split("\n")[-2]
        return " ".join(word for word, _ in Counter(re.findall(r"\. (\w+)", listed)).most_common(10))
    if "VAR" in text:
        last = text.split("\n\n")[-1]
        value, known = re.search(r"have the value (\d+)\?", last)[1], []
        for name, given in re.findall(r"VAR (\w+) = (?:VAR )?(\w+)\.", last):
            known += [name] if given == value or given in known else []
        return " ".join(known)
    return read_needles(text)


def test_who_reads_the_text_scores_one_at_every_kind_within_its_length(tmp_path):
    text = tmp_path / "tale.txt"
    text.write_text(" ".join(TEXT))
    model = Reader(solve)
    found = ruler(subject_of(model, tmp_path), RulerConfig(text=str(text), lengths=[2500, 4000], samples=3, rows=1))
    assert {cell["score"] for cell in found.details["cells"]} == {1.0}
    assert len(found.details["cells"]) == 2 * len(KINDS)
    assert found.figures["mean at 2500"].n == 3 * len(KINDS)
    # the last character is never read
    assert 3900 < model.longest <= 4000
    for shown in found.details["texts"]:
        assert 0.8 * shown["length"] < shown["tokens"] + KINDS[shown["kind"]].answer <= shown["length"]
    nothing = ruler(subject_of(Reader(lambda _: "none"), tmp_path), RulerConfig(haystack="noise", lengths=[2500], samples=2))
    assert {cell["score"] for cell in nothing.details["cells"]} == {0.0}
    from matplotlib.figure import Figure

    figure = Figure()
    draw_ruler(figure, {"a": found.details})
    assert np.array(figure.axes[0].images[0].get_array()).shape == (len(KINDS), 2)


def test_the_same_item_has_the_same_answers_at_every_size():
    for name, kind in KINDS.items():
        a, b = (kind.make(np.random.default_rng(5), size, 5000, TEXT) for size in (kind.least, 3 * kind.least))
        assert a.references == b.references, name
        assert len(a.text) < len(b.text)


@pytest.mark.parametrize(
    ("kind", "keys", "values", "references"),
    [
        ("single_1", 1, 1, 1),
        ("single_3", 1, 1, 1),
        ("multikey_1", 4, 4, 1),
        ("multikey_2", 31, 31, 1),
        ("multivalue", 1, 4, 4),
        ("multiquery", 4, 4, 4),
    ],
)
def test_needles_are_as_many_as_rulers(kind, keys, values, references):
    item = KINDS[kind].make(np.random.default_rng(0), 30, 4096, TEXT)
    found = SENTENCE.findall(item.text)
    assert len({value for *_, value in found}) == len(found) == values
    # keys of distractors may be the same
    assert keys - 3 <= len({key for _, key, _ in found}) <= keys
    assert len(item.references) == references
    pattern = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}" if kind == "single_3" else r"\d{7}"
    assert all(re.fullmatch(pattern, reference) for reference in item.references)


def test_common_words_come_up_30_times_and_frequent_ones_by_zipf():
    item = KINDS["cwe"].make(np.random.default_rng(0), 50, 4096, TEXT)
    counts = Counter(re.findall(r"\d+\. (\w+)", item.text.split("\n")[-2]))
    assert {counts[word] for word in item.references} == {30}
    assert Counter(counts.values()) == {30: 10, 3: 50}
    assert word_counts(1000, 2.0).tolist()[:4] == [607, 151, 67, 37]
    least = word_counts(KINDS["fwe"].least, 2.0)
    assert least[3] > least[4]


def test_needles_lie_at_their_depths():
    sentences = list("abcdefgh")
    assert hidden(sentences, ["X", "Y", "Z"], [1.0, 0.0, 0.5]) == "Y a b c d Z e f g h X"
    for depth in (0.0, 0.25, 1.0):
        item = Needles("noise", "words", "numbers").item(np.random.default_rng(1), 100, [], depth)
        context = item.text.split("\n")[1]
        assert context.index("One of the special") / len(context) == pytest.approx(depth, abs=0.04)
    assert DEPTHS == 40


def test_scores_are_rulers():
    cases = [("The answers are ABC and def.", ["abc", "DEF", "ghi"]), ("", ["x"]), ("xyz", ["y"])]
    for text, references in cases:
        assert score_of(text, references, "all") == string_match_all([text], [references])
    assert [score_of(*case, "any") for case in cases] == [1, 0, 1]


def test_the_grid_of_text_needles_sees_who_remembers(tmp_path):
    config = NeedleConfig(haystack="noise", lengths=[1200, 1800], depths=3, samples=4, candidates=5, rows=1)
    found = needle(subject_of(Reader(read_needles), tmp_path), config)
    assert {(cell["first"]["value"], cell["exact"]["value"]) for cell in found.details["cells"]} == {(1.0, 1.0)}

    def short(text: str) -> str:
        return read_needles(text[-600:]) if SENTENCE.search(text[-600:]) else "?"

    found = needle(subject_of(Reader(short), tmp_path), config)
    assert [cell["exact"]["value"] for cell in found.details["cells"]] == [0, 0, 1, 0, 0, 1]


def test_an_untrained_model_is_at_chance_in_text(subject):
    config = NeedleConfig(haystack="noise", lengths=[400], depths=2, samples=100, candidates=4, rows=20)
    found = needle(subject, config)
    low, high = found.details["whole"]["first"]["interval"]
    assert high - low < 0.13
    assert low <= found.figures["chance"].value == 1 / 4 <= high


def test_a_real_tokenizer_fits_too_and_a_dataset_is_a_haystack(subject):
    config = RulerConfig(kinds=["single_2", "vt"], lengths=[900], samples=2)
    found = ruler(subject, config)
    assert [cell["n"] for cell in found.details["cells"]] == [2, 2]
    rooms = [900 - KINDS[shown["kind"]].answer - shown["tokens"] for shown in found.details["texts"]]
    assert all(0 <= room < 100 for room in rooms)


def test_the_most_units_that_fit():
    for budget in range(7, 60):
        n = most_units(lambda size: 3 * size + 4, budget, 1, "x")
        assert 3 * n + 4 <= budget < 3 * (n + 1) + 4
    with pytest.raises(ConfigError, match="x takes 7 tokens at least beside its answer, and 6 are left"):
        most_units(lambda size: 3 * size + 4, 6, 1, "x")


def test_what_a_user_gets_wrong_is_said(subject, tmp_path):
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(DataError, match="holds no sentences"):
        read_haystack(subject, TextConfig(text=str(tmp_path / "empty.txt")))
    for values, sentence in (
        ({"kinds": ["singel_1"]}, "did you mean"),
        ({"lengths": []}, "must not be empty"),
        ({"samples": 0}, r"samples \(0\)"),
        ({"kinds": ["single_1"], "lengths": [140], "haystack": "noise"}, r"lengths \(140\): single_1 takes"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            ruler(replace(subject), RulerConfig(**values))
