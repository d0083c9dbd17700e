"""Decontamination: what a comparison of sets of n-grams says, counted per evaluation file, in any order of documents."""

import json
import pickle
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.decontaminate import DecontaminationConfig, Evaluations, Match
from data_prep.signatures import Document
from llm.errors import ConfigError, DataError

QUESTION = "Which river flows through the middle of the old town before it reaches the sea"
ANSWER = "The river that is meant here is the one which gave the town its name"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    records = [{"question": QUESTION, "answer": ANSWER, "choices": ["one", "two"]}, {"question": "Too short?", "answer": "Yes."}]
    (tmp_path / "quiz.jsonl").write_text("\n".join(json.dumps(r) for r in records) + "\n\n")
    (tmp_path / "book.txt").write_text("\n".join(f"line number {'abcdefghij'[k]} of the book" for k in range(10)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def quiz(**values) -> Evaluations:
    return Evaluations(DecontaminationConfig(**{"files": ["quiz.jsonl", "book.txt"], "fields": ["question", "answer"]} | values))


texts = st.lists(st.sampled_from("abc"), max_size=12)


@given(evaluation=st.lists(texts, min_size=1, max_size=4), document=texts, n=st.integers(1, 4), least=st.integers(1, 3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_matches_are_those_of_sets(tmp_path: Path, evaluation: list[list[str]], document: list[str], n: int, least: int):
    def ngrams(words: list[str]) -> set[tuple[str, ...]]:
        return {tuple(words[k : k + n]) for k in range(len(words) - n + 1)}

    path = tmp_path / "e.jsonl"
    path.write_text("".join(json.dumps({"text": " ".join(words)}) + "\n" for words in evaluation))
    known = {ngram for words in evaluation for ngram in ngrams(words) if n == 1 or len(set(ngram)) > 1}
    config = DecontaminationConfig(files=[str(path)], words=n, min_matches=least)
    if not known:
        with pytest.raises(DataError, match=rf"has no text of {n} words; use fewer words, or leave it out"):
            Evaluations(config)
        return
    found = Evaluations(config)
    shared = ngrams(document) & known
    matches = found.matches(" ".join(document))
    assert [match.ngrams for match in matches] == [len(shared)] * (len(shared) >= least)
    assert all(tuple(match.example.split()) in shared for match in matches)
    assert found.reports[str(path)].ngrams == len(known)
    assert found.reports[str(path)].too_short == sum(not ngrams(words) & known for words in evaluation)


def test_documents_with_evaluation_text_go_and_are_counted(folder: Path):
    documents = [
        Document("3", "web", f"Before. {QUESTION.upper()}?! After."),
        Document("1", "web", f"A quiz: {ANSWER.replace(' ', '  ')}"),
        Document("2", "books", "Nothing of the sort is in here, and it has more than thirteen words in all."),
        Document("4", "books", (folder / "book.txt").read_text()),
        Document("5", "books", ""),
        Document("6", "books", "word"),
    ]
    evaluations = quiz()
    assert [d.id for d in evaluations.kept(documents)] == ["2", "5", "6"]
    report = evaluations.reports["quiz.jsonl"]
    assert (report.texts, report.too_short, report.matched) == (2, 1, {"web": 2})
    assert report.examples == [
        ("1", "the river that is meant here is the one which gave the town"),
        ("3", "which river flows through the middle of the old town before it reaches"),
    ]
    assert evaluations.reports["book.txt"].matched == {"books": 1}
    again = quiz()
    assert len(list(again.kept(reversed(documents)))) == 3
    assert again.to_json() == evaluations.to_json()


def test_ngrams_run_from_a_field_into_the_next(folder: Path):
    across = " ".join([*QUESTION.split()[-7:], *ANSWER.split()[:7]])
    assert [match.file for match in quiz().matches(across)] == ["quiz.jsonl"]
    assert quiz(fields=["answer", "question"]).matches(across) == []


def test_matches_below_the_minimum_count_are_none(folder: Path):
    # 15 words, of which the first 14 hold two n-grams of 13
    part = " ".join(QUESTION.split()[:14])
    assert quiz(min_matches=2).matches(part) == [Match("quiz.jsonl", 2, " ".join(part.lower().split()[:13]))]
    assert quiz(min_matches=3).matches(part) == []
    # a repeated n-gram is one
    assert quiz(min_matches=3).matches(f"{part}. {part}") == []


def test_rows_of_numbers_are_no_evidence(folder: Path):
    Path("table.txt").write_text(" ".join(str(k) for k in range(100)) + f" {QUESTION}")
    evaluations = quiz(files=["table.txt"])
    assert evaluations.matches(" ".join(str(7 * k) for k in range(50))) == []
    assert len(evaluations.matches(QUESTION)) == 1


def test_a_report_without_drops(folder: Path):
    evaluations = quiz(drop=False)
    documents = [Document("1", "web", QUESTION)]
    assert list(evaluations.kept(documents)) == documents
    assert evaluations.reports["quiz.jsonl"].matched == {"web": 1}


def test_processes_can_share_the_ngrams(folder: Path):
    assert pickle.loads(pickle.dumps(quiz())).matches(QUESTION) == quiz().matches(QUESTION)


def test_scripts_without_spaces_are_found(folder: Path):
    text = "".join(chr(0x4E00 + k) for k in range(40))
    Path("han.txt").write_text(text)
    assert quiz(files=["han.txt"]).matches(f"前{text[10:23]}後")[0].ngrams == 1
    assert quiz(files=["han.txt"]).matches(f"前{text[10:22]}後") == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, r"evaluation file none\.txt cannot be read \(No such file or directory\); correct its path"),
        ("latin.txt", b"caf\xe9", r"evaluation file latin\.txt is not UTF-8; convert it"),
        ("bad.jsonl", b'{"question": "a"', r"evaluation file bad\.jsonl, line 1 is no JSON"),
        ("deep.jsonl", b"[" * 100_000, r"evaluation file deep\.jsonl, line 1 is no JSON"),
        ("list.jsonl", b"\n[1]", r"line 2 has no text in the field 'question'; name other fields"),
        ("field.jsonl", b'{"question": 1}', r"line 1 has no text in the field 'question'"),
        ("empty.txt", b"", r"evaluation file empty\.txt has no text of 13 words"),
        ("empty.jsonl", b"", r"evaluation file empty\.jsonl has no text of 13 words"),
    ],
)
def test_unusable_evaluation_files_are_named(folder: Path, name: str, content: bytes | None, message: str):
    if content is not None:
        Path(name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        quiz(files=[name])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"files": []}, r"decontamination\.files \(none\) must name evaluation files"),
        ({"files": ["a.csv"]}, r"decontamination\.files \(a\.csv\) must end in \.txt or \.jsonl; convert it"),
        ({"files": ["a.txt", "a.txt"]}, r"decontamination\.files \(a\.txt\) must not name a file twice"),
        ({"fields": []}, r"decontamination\.fields \(none\) must name the texts of a record"),
        ({"words": 0}, r"decontamination\.words \(0\) must be at least 1"),
        ({"min_matches": 0}, r"decontamination\.min_matches \(0\) must be at least 1"),
    ],
)
def test_settings_out_of_bounds_are_refused(folder: Path, values: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        quiz(**values)
