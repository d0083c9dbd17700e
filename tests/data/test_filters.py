"""Filters by profile: their reports don't depend on the order of documents, languages need no network, settings are checked."""

import itertools
import random
import socket
import sysconfig
from dataclasses import fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.filters import PROFILES, FilterConfig, FilterReport, Filters
from data_prep.filters.c4 import C4
from data_prep.filters.code_files import CODE_RULES, CodeFiles
from data_prep.filters.fineweb import FINEWEB_RULES, FineWeb
from data_prep.filters.gopher import QUALITY_RULES, GopherQuality
from data_prep.filters.language import LanguageConfig, identify
from data_prep.filters.view import View
from llm.config import load
from llm.errors import ConfigError
from tests.data.filtering import texts


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1\n" * 10, None),
        (f"{'x' * 101}\n", "code_mean_line"),
        (f"{'x' * 100}\n", None),
        ("x = 1\n" * 100 + "y" * 1001, "code_longest_line"),
        ("x = 1\n" * 100 + "y" * 1000, None),
        ("a..." * 10, None),
        ("a...." * 10, "code_alphanumeric"),
        ("", None),
    ],
)
def test_rules_for_code(text: str, reason: str | None):
    view = View(text)
    assert next((rule.name for rule in CODE_RULES if rule.fails(view, getattr(CodeFiles(), rule.setting))), None) == reason


def test_source_code_needs_its_own_profile():
    stdlib = Path(sysconfig.get_path("stdlib"))
    sources = {path.name: path.read_text(encoding="utf-8") for path in sorted(stdlib.glob("*.py"))[:60]}
    kept = dict.fromkeys(PROFILES, 0)
    for profile in PROFILES:
        filters = Filters(FilterConfig(profile))
        kept[profile] = sum(filters.apply(name, text) is not None for name, text in sources.items())
    assert kept["none"] == len(sources)
    assert kept["code"] >= 0.95 * len(sources)
    assert kept["web"] <= kept["prose"] <= 0.3 * len(sources)


@pytest.mark.parametrize("profile", PROFILES)
def test_counts_add_up(profile: str):
    filters = Filters(FilterConfig(profile, language=LanguageConfig(["en"], 0.3)))
    documents = {str(k): text for k, text in enumerate(texts()[:200])}
    left = {id: text for id, text in documents.items() if filters.apply(id, text) is not None}
    reports = list(filters.report.rules.values())
    assert reports[0].kept + reports[0].dropped == len(documents)
    assert all(after.kept + after.dropped == before.kept for before, after in itertools.pairwise(reports))
    assert reports[-1].kept == len(left)
    assert profile in ("none", "code") or len(left) < len(documents)


@given(text=st.text() | st.text(alphabet=" \n.-#{…the'"))
def test_no_text_is_a_traceback(text: str):
    for profile in PROFILES:
        once = Filters(FilterConfig(profile)).apply("id", text)
        assert once is None or profile == "web" or once == text


def test_texts_without_words():
    for text in ("", " \n ", "\n"):
        assert Filters(FilterConfig("prose")).apply("id", text) is None
        failed = [rule.name for rule in QUALITY_RULES if rule.fails(View(text), getattr(GopherQuality(), rule.setting))]
        assert failed == ["gopher_few_words", "gopher_stop_words"]
        assert not [rule.name for rule in FINEWEB_RULES if rule.fails(View(text), getattr(FineWeb(), rule.setting))]


def test_a_rule_that_is_off_is_not_counted():
    filters = Filters(FilterConfig("code", code=CodeFiles(max_line=None)))
    assert filters.apply("id", "x = 1\n" * 100 + "y" * 2000)
    assert list(filters.report.rules) == ["code_mean_line", "code_alphanumeric"]


def run(documents: list[tuple[str, str]], parts: int = 1) -> FilterReport:
    total = FilterReport()
    for k in range(parts):
        filters = Filters(FilterConfig("web"))
        for id, text in documents[k::parts]:
            filters.apply(id, text)
        total.merge(filters.report)
    return total


@pytest.mark.parametrize("parts", [1, 3])
def test_reports_do_not_depend_on_order_or_processes(parts: int):
    documents = [(f"s:{k}", text) for k, text in enumerate(texts()[:300])]
    whole = run(documents)
    assert sum(report.dropped > 5 for report in whole.rules.values()) >= 3
    for report in whole.rules.values():
        assert len(report.samples) == min(report.dropped, 5)
        assert all(text.startswith(sample.excerpt) for sample in report.samples for id, text in documents if id == sample.id)
    random.Random(parts).shuffle(documents)
    again = run(documents, parts)
    assert again == whole
    assert list(again.rules) == list(whole.rules)


SENTENCES = {
    "en": "The committee will meet again next week to decide how the money should be spent.",
    "de": "Der Ausschuss wird sich nächste Woche erneut treffen, um über die Ausgaben zu entscheiden.",
    "fr": "Le comité se réunira de nouveau la semaine prochaine pour décider comment dépenser cet argent.",
    "es": "El comité se reunirá de nuevo la próxima semana para decidir cómo gastar el dinero.",
    "ru": "Комитет снова соберётся на следующей неделе, чтобы решить, как потратить деньги.",
    "ja": "委員会は来週再び集まり、お金の使い道を決めます。",
    "ar": "ستجتمع اللجنة مرة أخرى الأسبوع المقبل لتقرر كيفية إنفاق المال.",
}


def test_languages_are_told_apart_without_a_network(monkeypatch: pytest.MonkeyPatch):
    def refuse(*_, **__):
        raise AssertionError("no network")

    monkeypatch.setattr(socket, "socket", refuse)
    for code, text in SENTENCES.items():
        assert identify(text).code == code
        assert identify(text).score > 0.65
    filters = Filters(FilterConfig(language=LanguageConfig(["en", "de"])))
    kept = [code for code, text in SENTENCES.items() if filters.apply(code, text)]
    assert kept == ["en", "de"]
    assert filters.report.rules["language_other"].dropped == 5
    assert {sample.id for sample in filters.report.rules["language_other"].samples} == set(SENTENCES) - {"en", "de"}


def test_an_unsure_language_is_its_own_reason():
    text = "12345 === 99"
    code, score = identify(text)
    assert score < 0.65
    filters = Filters(FilterConfig(language=LanguageConfig([code])))
    assert filters.apply("id", text) is None
    assert filters.report.rules["language_unsure"].dropped == 1
    assert identify(" \n\0") == ("none", 0.0)
    assert identify("A line.\r\nAnother one, of English words\n" * 500).code == "en"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (FilterConfig("prosa"), r"filters\.profile \(prosa\) is unknown; did you mean 'prose'"),
        (FilterConfig("code", code=CodeFiles(max_line=-1)), r"filters\.code\.max_line \(-1\) must not be negative"),
        (FilterConfig("code", c4=C4()), r"filters\.c4 has no effect in the profile code; remove it, or use web"),
        (FilterConfig("none", gopher_quality=GopherQuality(min_words=5)), r"no effect in the profile none; .* or use prose, web"),
        (FilterConfig(language=LanguageConfig(["English"])), r"filters\.language\.keep \(English\) must be codes of ISO 639"),
        (FilterConfig(language=LanguageConfig(["en"], 2)), r"filters\.language\.min_score \(2\) is a probability"),
        (FilterConfig(language=LanguageConfig(["en"], characters=0)), r"filters\.language\.characters \(0\)"),
        (FilterConfig(language=LanguageConfig(min_score=0.5)), r"filters\.language has no effect without languages to keep"),
    ],
)
def test_bad_settings_are_refused(config: FilterConfig, message: str):
    with pytest.raises(ConfigError, match=message):
        Filters(config)


def test_settings_load_from_yaml(tmp_path: Path):
    path = tmp_path / "filters.yaml"
    path.write_text("profile: web\ngopher_quality: {max_words: null}\nlanguage: {keep: [en]}\n")
    config = load(FilterConfig, [str(path), "c4.min_sentences=3"], {})
    config.check()
    assert (config.gopher_quality.max_words, config.c4.min_sentences, config.c4.terminal_punctuation) == (None, 3, False)
    assert {f.name for f in fields(config)} == {"profile", "language", *itertools.chain(*PROFILES.values())}
    assert config.language.keep == ["en"]
