"""Gopher's, C4's and FineWeb's rules: each gives datatrove's verdict, given the same words.

datatrove's own words and sentences are spaCy's, which is not installed here; `filters/view.py` says how often that matters.
"""

import inspect
import itertools
from collections import Counter
from functools import cache

import pytest

from data_prep.filters.c4 import C4, clean_page
from data_prep.filters.fineweb import FINEWEB_RULES, FineWeb
from data_prep.filters.gopher import QUALITY_RULES, REPETITION_RULES, GopherQuality, GopherRepetition
from data_prep.filters.punctuation import PUNCTUATION, TERMINAL
from data_prep.filters.view import Rule, View, count_sentences, split_words
from tests.data.filtering import texts
from tests.peers import peers


class Peer:
    """datatrove's filters with our words and sentences."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.document = peers.load("datatrove.data").Document
        names = ("gopher_quality_filter", "gopher_repetition_filter", "c4_filters", "fineweb_quality_filter")
        self.modules = {name: peers.load(f"datatrove.pipeline.filters.{name}") for name in names}
        split = cache(split_words)
        for module in self.modules.values():
            if hasattr(module, "split_into_words"):
                monkeypatch.setattr(module, "split_into_words", lambda text, language=None: split(text))
        monkeypatch.setattr(self.modules["c4_filters"], "split_into_sentences", lambda text, language: [""] * count_sentences(text))

    def quality(self, **settings):
        return self.modules["gopher_quality_filter"].GopherQualityFilter(**settings)

    def repetition(self, **settings):
        return self.modules["gopher_repetition_filter"].GopherRepetitionFilter(**settings)

    def fineweb(self, **settings):
        return self.modules["fineweb_quality_filter"].FineWebQualityFilter(**settings)

    def c4(self, **settings):
        return self.modules["c4_filters"].C4QualityFilter(**settings)

    def reason(self, judge, text: str) -> tuple[str, str | None]:
        """(the text after the filter, its reason)."""
        document = self.document(text=text, id="")
        verdict = judge.filter(document)
        return document.text, None if verdict is True else verdict[1]


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> Peer:
    return Peer(monkeypatch)


# our setting -> theirs; both symbol ratios are one setting there
QUALITY = {
    "min_words": "min_doc_words",
    "max_words": "max_doc_words",
    "min_mean_word": "min_avg_word_length",
    "max_mean_word": "max_avg_word_length",
    "max_hash_ratio": "max_symbol_word_ratio",
    "max_ellipsis_ratio": "max_symbol_word_ratio",
    "max_bullet_lines": "max_bullet_lines_ratio",
    "max_ellipsis_lines": "max_ellipsis_lines_ratio",
    "min_letter_words": "max_non_alpha_words_ratio",
    "min_stop_words": "min_stop_words",
}
QUALITY_REASONS = dict(
    zip(
        (rule.name for rule in QUALITY_RULES),
        """gopher_short_doc gopher_long_doc gopher_below_avg_threshold gopher_above_avg_threshold gopher_too_many_hashes
        gopher_too_many_ellipsis gopher_too_many_bullets gopher_too_many_end_ellipsis gopher_below_alpha_threshold
        gopher_enough_stop_words""".split(),
        strict=True,
    )
)
REPETITION = {
    "duplicate_paragraphs": "dup_para_frac",
    "duplicate_paragraph_characters": "dup_para_char_frac",
    "duplicate_lines": "dup_line_frac",
    "duplicate_line_characters": "dup_line_char_frac",
}
FINEWEB = {
    "min_punctuated_lines": "line_punct_thr",
    "max_short_lines": "short_line_thr",
    "max_repeated_characters": "char_duplicates_ratio",
    "max_line_feeds": "new_line_ratio",
}
FINEWEB_OFF = {"line_punct_thr": 0.0, "short_line_thr": 9.0, "char_duplicates_ratio": 9.0, "new_line_ratio": 1e9}


def alone(peer: Peer, rule: Rule):
    """Their filter with no rule but this one, at its default threshold."""
    if rule in QUALITY_RULES:
        return peer.quality(**{name: None for name in QUALITY.values() if name != QUALITY[rule.setting]})
    if rule in FINEWEB_RULES:
        return peer.fineweb(**{name: off for name, off in FINEWEB_OFF.items() if name != FINEWEB[rule.setting]})
    default = {name: None for name in REPETITION.values() if name != REPETITION.get(rule.setting)}
    grams = {"top_n_grams": (), "dup_n_grams": ()}
    if rule.setting not in REPETITION:
        n = int(rule.setting.split("_")[1])
        grams["top_n_grams" if rule.setting.startswith("top") else "dup_n_grams"] = (
            (n, getattr(GopherRepetition(), rule.setting)),
        )
    return peer.repetition(**default, **grams)


SECTIONS = {QUALITY_RULES: GopherQuality(), REPETITION_RULES: GopherRepetition(), FINEWEB_RULES: FineWeb()}


@pytest.mark.parametrize("rule", [*itertools.chain(*SECTIONS)], ids=lambda rule: rule.name)
def test_each_rule_says_what_datatrove_says(peer: Peer, rule: Rule):
    config = next(config for rules, config in SECTIONS.items() if rule in rules)
    theirs = alone(peer, rule)
    verdicts = Counter()
    for text in texts():
        fails = rule.fails(View(text), getattr(config, rule.setting))
        reason = peer.reason(theirs, text)[1]
        # the two symbol ratios share their setting, so the other one may come first
        if rule.setting in ("max_hash_ratio", "max_ellipsis_ratio"):
            other = "gopher_too_many_ellipsis" if rule.setting == "max_hash_ratio" else "gopher_too_many_hashes"
            if reason == other:
                continue
        assert fails == (reason is not None), text
        verdicts[fails] += 1
    if rule.setting not in ("max_words", "max_mean_word", "min_mean_word"):
        assert min(verdicts[True], verdicts[False]) >= 3, verdicts


@pytest.mark.parametrize("text", ["word " * 100_001, "it is so " * 40, "incomprehensibilities " * 60, "it is so and the " * 40])
def test_lengths_at_their_bounds_as_in_datatrove(peer: Peer, text: str):
    view, found = View(text), peer.reason(peer.quality(), text)[1]
    ours = next((rule.name for rule in QUALITY_RULES if rule.fails(view, getattr(GopherQuality(), rule.setting))), None)
    assert QUALITY_REASONS.get(ours) == found


def test_the_first_reason_is_that_of_datatrove(peer: Peer):
    judge = peer.quality()
    for text in texts():
        view = View(text)
        ours = next((rule.name for rule in QUALITY_RULES if rule.fails(view, getattr(GopherQuality(), rule.setting))), None)
        assert QUALITY_REASONS.get(ours) == peer.reason(judge, text)[1], text


def test_thresholds_are_those_of_datatrove(peer: Peer):
    def defaults(judge) -> dict[str, object]:
        return {name: p.default for name, p in inspect.signature(type(judge).__init__).parameters.items()}

    quality, repetition, fineweb, c4 = map(defaults, (peer.quality(), peer.repetition(), peer.fineweb(), peer.c4()))
    assert {name: quality[theirs] for name, theirs in QUALITY.items()} == GopherQuality().__dict__
    grams = {f"top_{n}_gram": most for n, most in repetition["top_n_grams"]}
    grams |= {f"duplicate_{n}_grams": most for n, most in repetition["dup_n_grams"]}
    assert {name: repetition[theirs] for name, theirs in REPETITION.items()} | grams == GopherRepetition().__dict__
    assert {name: fineweb[theirs] for name, theirs in FINEWEB.items()} == FineWeb().__dict__
    assert (c4["min_num_sentences"], c4["min_words_per_line"], c4["max_word_length"]) == (5, 3, 1000)
    assert (C4().min_sentences, C4().min_words, C4().max_word) == (5, 3, 1000)
    text = peers.load("datatrove.utils.text")
    assert (text.TERMINAL_PUNCTUATION, text.PUNCTUATION_SET) == (TERMINAL, PUNCTUATION)


C4_REASONS = {"c4_lorem_ipsum": "lorem_ipsum", "c4_curly_bracket": "curly_bracket", "c4_few_sentences": "too_few_sentences"}
C4_LINES = {
    "line-kept": "kept",
    "line-filter-too_long_word": "c4_long_word",
    "line-filter-no_terminal_punc": "c4_no_terminal_punctuation",
    "line-filter-too_few_words": "c4_few_words",
    "line-filter-javascript": "c4_javascript",
    "line-filter-policy": "c4_policy",
}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({}, {}),
        ({"filter_no_terminal_punct": False}, {"terminal_punctuation": False}),
        ({"filter_curly_bracket": False, "filter_lorem_ipsum": False}, {"curly_bracket": False, "lorem_ipsum": False}),
        ({"remove_citations": False, "filter_javascript": False}, {"citations": False, "javascript": False}),
        ({"filter_policy": False, "max_word_length": -1}, {"policy": False, "max_word": None}),
        ({"min_words_per_line": -1, "min_num_sentences": 1}, {"min_words": None, "min_sentences": 1}),
    ],
)
def test_pages_and_lines_are_those_of_datatrove(peer: Peer, theirs: dict, ours: dict):
    judge, reasons, changed = peer.c4(**theirs), Counter(), 0
    counted: Counter[str] = Counter()
    judge.stat_update = lambda *names, **_: counted.update(names)
    for text in texts():
        counted.clear()
        lines: Counter[str] = Counter()
        expected, reason = peer.reason(judge, text)
        found, ours_reason = clean_page(text, C4(**ours), lines)
        assert C4_REASONS.get(ours_reason) == reason, text
        assert {C4_LINES[name]: count for name, count in counted.items() if name != "line-total"} == lines
        if reason is None:
            assert found == expected
        changed += found != text
        reasons[reason] += 1
    assert reasons[None] > 20
    assert changed > 20
    if not ours:
        assert set(reasons) == {None, *C4_REASONS.values()}
