"""The tokenizer's report: sums checked by hand and by the library, failures named, nothing crashes on odd tokenizers."""

import argparse
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from data_prep import tokenizer_command
from data_prep.token_bytes import byte_lengths
from data_prep.tokenizer_report import markdown, tokenizer_report
from llm.data import Manifest
from llm.errors import BraidError
from tests.data import tokenizers_of_all_kinds as kinds

TRANSLATABLE = {name: json.dumps(content).encode() for name, content in kinds.translatable().items()}
ODD = {name: json.dumps(content).encode() for name, (content, _) in kinds.untranslatable().items()}
TEXTS = ["one two  three", "e\u0301 日本", "", "x <|endoftext|> y"]


@pytest.mark.parametrize("name", ["ours", "llama-3", "ids with gaps", "sentencepiece", "prefix space"])
def test_sums_are_those_of_the_library(name: str):
    content = (TRANSLATABLE | ODD)[name]
    tokenizer = Tokenizer.from_str(content.decode())
    tokenizer.encode_special_tokens = True
    ids = [tokenizer.encode(text, add_special_tokens=False).ids for text in TEXTS]
    entry = tokenizer_report({"t": content}, {"a": TEXTS, "b": iter(TEXTS[:1])})["t"]
    counts = entry["sources"]["a"]
    assert (counts["texts"], counts["bytes"], counts["characters"], counts["words"]) == (4, 14 + 10 + 17, 14 + 5 + 17, 3 + 2 + 3)
    assert counts["tokens"] == sum(map(len, ids))
    assert counts["tokens_per_word"] == counts["tokens"] / 8
    assert counts["bytes_per_token"] == 41 / counts["tokens"]
    failures = [text for text, i in zip(TEXTS, ids, strict=True) if tokenizer.decode(i, skip_special_tokens=False) != text]
    assert counts["failures"] == len(failures)
    assert bool(failures) == (name in ("sentencepiece", "prefix space"))
    assert entry["used"] == len({id for i in ids for id in i})
    assert entry["used"] + entry["unused"] + entry["special"] == entry["vocabulary"] == tokenizer.get_vocab_size()
    assert entry["sources"]["b"]["tokens"] == len(ids[0])


@pytest.mark.parametrize("name", TRANSLATABLE)
@settings(deadline=None, max_examples=25)
@given(text=st.text())
def test_lengths_of_ids_add_up_to_the_text(name: str, text: str):
    tokenizer = Tokenizer.from_str(TRANSLATABLE[name].decode())
    tokenizer.encode_special_tokens = True
    tokenizer.normalizer = None
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert byte_lengths(TRANSLATABLE[name])[ids].sum() == len(text.encode())


def test_single_bytes_and_the_longest_tokens():
    entry = tokenizer_report({"t": TRANSLATABLE["ours"]}, {"s": ["\u0378\u0379 the" + "=" * 32]})["t"]
    vocabulary = json.loads(TRANSLATABLE["ours"])["model"]["vocab"]
    lengths = sorted((len(token) for token in vocabulary if token != "<|endoftext|>"), reverse=True)
    assert [token["bytes"] for token in entry["longest"]] == lengths[:10]
    assert entry["longest"][0]["text"].isprintable()
    counts = entry["sources"]["s"]
    # four bytes of two characters that no text of the training has
    assert counts["single_byte_share"] * counts["tokens"] == 4
    assert (byte_lengths(TRANSLATABLE["ours"]) == 1).sum() == 256


def test_a_text_that_does_not_come_back_is_shown():
    report = tokenizer_report({"bert": ODD["normaliser"], "ours": TRANSLATABLE["ours"]}, {"s": ["Straße É", "abc"] * 9})
    counts = report["bert"]["sources"]["s"]
    assert (counts["failures"], len(counts["samples"])) == (9, 3)
    assert counts["samples"][0] == r"`'Stra\xdfe \xc9'` became `'stra\xdfe e'` at character 0"
    assert report["ours"]["sources"]["s"]["failures"] == 0
    assert r"- bert, s, does not come back: `'Stra\xdfe \xc9'`" in markdown(report)


def test_a_tokenizer_that_makes_special_ids_from_text_is_named():
    content = json.loads(TRANSLATABLE["gpt-2"])
    content["added_tokens"][0]["special"] = False
    report = tokenizer_report({"bad": json.dumps(content).encode(), "ours": TRANSLATABLE["ours"]}, {"s": ["text"]})
    assert report["bad"].keys() == {"refused"}
    assert "- bad is refused: tokenizer.json makes the special token <|endoftext|> from the text" in markdown(report)


def test_odd_tokenizers_are_measured_too():
    report = tokenizer_report(ODD, {"s": kinds.TEXTS[:40]})
    assert all(entry["encoder"] == "tokenizers" and entry["sources"]["s"]["tokens"] for entry in report.values())
    assert json.loads(json.dumps(report)) == report
    tables = [line for line in markdown(report).splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in tables} == {11, 7}


def command(*words: str) -> None:
    parser = argparse.ArgumentParser()
    tokenizer_command.add_parser(parser.add_subparsers())
    arguments = parser.parse_args(["tokenizer", *words])
    arguments.run(arguments)


def test_the_command_compares_on_a_dataset_and_on_files(dataset: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    other = tmp_path / "other.json"
    other.write_bytes(TRANSLATABLE["gpt-2"])
    command(str(dataset.root), str(other))
    printed = capsys.readouterr().out
    assert all(f"| {source} | {name} |" in printed for source in ("prose", "code") for name in (dataset.root, other))
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_bytes(b"one\r\ntwo")
    (tmp_path / "texts" / "b.txt").write_text("three")
    command(str(other), "--text", str(tmp_path / "texts"), "--json")
    counts = json.loads(capsys.readouterr().out)[str(other)]["sources"]["text"]
    assert (counts["texts"], counts["bytes"]) == (2, 13)
    command(str(other), "--text", str(tmp_path / "texts"), "--json", "--megabytes", "0.000001")
    assert json.loads(capsys.readouterr().out)[str(other)]["sources"]["text"]["texts"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.json"], r"tokenizer none\.json does not exist"),
        (["good.json"], r"--on and --text \(none\) must name text"),
        (["good.json", "--text", "latin.txt"], r"text latin\.txt is not UTF-8"),
        (["good.json", "--text", "gone.txt"], r"text gone\.txt cannot be read \(No such file"),
        (["bad.json", "--text", "good.json"], r"bad\.json is no tokenizer\.json"),
        (["good.json", "--text", "good.json", "--megabytes", "0"], r"--megabytes \(0\) must be positive"),
        (["good.json", "--text", "good.json", "--megabytes", "nan"], r"--megabytes \(nan\) must be positive and finite"),
    ],
)
def test_bad_words_end_in_a_sentence(words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("good.json").write_bytes(TRANSLATABLE["ours"])
    Path("bad.json").write_text("{}")
    Path("latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(BraidError, match=message):
        command(*words)


def test_lengths_of_byte_fallback_are_single_bytes():
    content = json.loads(ODD["sentencepiece"])
    content["model"]["vocab"] = {"<0xE2>": 0, "▁": 1, "▁x": 2, "日": 3}
    content["model"]["merges"] = []
    content["added_tokens"] = []
    assert np.array_equal(byte_lengths(json.dumps(content).encode()), [1, 1, 2, 3])
