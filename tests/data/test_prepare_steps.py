"""What each step of a preparation drops and keeps, over every reader, and that the counts add up."""

import json
import random
import sysconfig
import tarfile
from io import BytesIO
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.clean import clean
from data_prep.markup import code, markdown
from data_prep.outcome import Outcome
from data_prep.prepare import prepare
from data_prep.recipe import load_recipe
from data_prep.stages import documents, duplicates
from data_prep.stages.shards import pack
from data_prep.stages.work import Work, opened, read_documents
from data_prep.workers import Workers
from llm.data import Manifest
from llm.data import documents as documents_of
from llm.data.write import DatasetWriter
from tests.data.preparing import sentence, texts

SOURCE = "sources.{name}.read={{kind: {kind}, root: {root}}}"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(name: str, texts: list[object]) -> str:
    """Write them, and return the words of a recipe that read them as a source."""
    Path(f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return SOURCE.format(name=name, kind="jsonl", root=f"{name}.jsonl")


def dataset(*words: str) -> Manifest:
    found = prepare(load_recipe(["out=out", "workers=1", "tokenizer.vocabulary=280", *words]))
    assert isinstance(found, Manifest)
    return found


def everything(manifest: Manifest) -> list[str]:
    return sorted(text for split in texts(manifest).values() for text in split)


def test_every_kind_of_reader_fills_a_dataset(folder: Path, monkeypatch: pytest.MonkeyPatch):
    rng = random.Random(1)
    found = {kind: [f"{kind} {sentence(rng, 30)}" for _ in range(3)] for kind in "text jsonl parquet code hf tar stdlib".split()}
    for kind, suffix in (("text", "md"), ("code", "py"), ("stdlib", "py")):
        Path(kind).mkdir()
        for k, text in enumerate(found[kind]):
            Path(kind, f"{k}.{suffix}").write_text(text)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: "stdlib")
    pq.write_table(pa.table({"text": found["parquet"]}), "a.parquet")
    datasets.Dataset.from_dict({"text": found["hf"]}).save_to_disk("hf")
    with tarfile.open("a.tar", "w") as tar:
        for k, text in enumerate(found["tar"]):
            info = tarfile.TarInfo(f"{k}.txt")
            info.size = len(text)
            tar.addfile(info, BytesIO(text.encode()))
    kinds = {"text": "text", "parquet": "a.parquet", "code": "code", "tar": "a.tar"}
    names = {"text": "text", "parquet": "parquet", "code": "source-code", "tar": "webdataset"}
    manifest = dataset(
        lines("jsonl", found["jsonl"]),
        *(SOURCE.format(name=name, kind=names[name], root=root) for name, root in kinds.items()),
        "sources.hf.read={kind: huggingface, path: hf}",
        "sources.stdlib.read=python-stdlib",
    )
    assert everything(manifest) == sorted(text for texts in found.values() for text in texts)
    by_source = {name: sum(s.documents for s in manifest.shards if s.source == name) for name in manifest.sources}
    assert by_source == dict.fromkeys(found, 3)


def test_duplicates_across_sources_leave_the_lowest_id(folder: Path):
    rng = random.Random(2)
    alone, twice, nearly = (sentence(rng, 150) for _ in range(3))
    b = lines("b", [twice, alone, nearly + "and more"])
    a = lines("a", [nearly, twice, twice])
    found = dataset(b, a, "validation=0")
    assert everything(found) == sorted([alone, twice, nearly])
    assert {s.source: s.documents for s in found.shards} == {"a": 2, "b": 1}
    report = json.loads(Path("out/report/duplicates.json").read_text())
    assert {name: (c["exact"], c["near"]) for name, c in report["sources"].items()} == {"a": (1, 0), "b": (1, 1)}
    assert "`b:b.jsonl#3` of `a:a.jsonl#1`, similarity about 0.9" in Path("out/report/drops.md").read_text()
    assert everything(dataset(b, a, "dedup.near=false", "out=exact")) == sorted([alone, twice, nearly, nearly + "and more"])
    assert len(everything(dataset(b, a, "dedup=null", "out=none"))) == 6
    assert not Path("out/none/report/duplicates.json").exists()


def test_copies_of_a_text_are_on_one_side(folder: Path):
    rng = random.Random(3)
    found = [sentence(rng, 20) for _ in range(40)]
    sides = texts(dataset(lines("a", found), lines("b", found), "dedup=null", "validation=0.3"))
    assert not set(sides["train"]) & set(sides["validation"])
    assert len(sides["train"]) == 2 * len(set(sides["train"]))


def test_text_of_an_evaluation_is_dropped_and_named(folder: Path):
    rng = random.Random(4)
    quiz = sentence(rng, 30)
    Path("quiz.txt").write_text(quiz)
    a = lines("a", [sentence(rng, 60), f"{sentence(rng, 60)}{quiz}", sentence(rng, 60)])
    words = [a, "decontamination.files=[quiz.txt]"]
    manifest = dataset(*words)
    assert len(everything(manifest)) == 2
    assert "| a | contaminated | 1 | " in Path("out/CARD.md").read_text()
    report = json.loads(Path("out/report/contamination.json").read_text())["quiz.txt"]
    assert (report["matched"], report["examples"][0][0]) == ({"a": 1}, "a:a.jsonl#2")
    assert "- `a:a.jsonl#2`: `" in Path("out/report/drops.md").read_text()
    kept = dataset(*words, "decontamination.drop=false", "out=kept")
    assert len(everything(kept)) == 3
    assert json.loads(Path("kept/report/contamination.json").read_text())["quiz.txt"]["matched"] == {"a": 1}


AWKWARD = st.one_of(
    st.none(),
    st.integers(),
    st.sampled_from(["", " \n", "\ud800", "a\r\nb", "e\u0301", "{ }", "lorem ipsum dolor.", "one two three four.\nx\n" * 9]),
    st.text(st.characters(codec="utf-8"), max_size=30),
    st.integers(0, 9).map(lambda seed: sentence(random.Random(seed), 80)),
)


@settings(deadline=None, max_examples=40)
@given(
    a=st.lists(AWKWARD, max_size=12),
    b=st.lists(AWKWARD, max_size=12),
    part=st.integers(1, 300),
    profile=st.sampled_from(["none", "prose", "web", "code"]),
)
def test_what_was_read_is_what_was_dropped_or_is_left(tmp_path_factory, a, b, part: int, profile: str):
    folder = tmp_path_factory.mktemp("ledger")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(documents, "PART", part)
        web = ["sources.a.filters.fineweb.max_line_feeds=null"] if profile == "web" else []
        recipe = load_recipe(["out=out", lines("a", a), lines("b", b), f"sources.a.filters.profile={profile}", *web])
        with opened(Path("out"), "key") as work, Workers(1) as workers:
            documents.run(recipe, work, workers, lambda record: None)
            duplicates.run(recipe.dedup, work, workers, lambda results, total: results)
            outcome = Outcome.of(recipe, work)
            left = {
                name: [
                    text
                    for k, source in enumerate(work.sources)
                    for _, text in duplicates.kept_documents(work, k)
                    if source == name
                ]
                for name in ("a", "b")
            }
    for name, given_ in (("a", a), ("b", b)):
        rows = outcome.rows[name]
        assert rows[0].left == len(given_)
        assert rows[0].left - sum(row.dropped for row in rows) == rows[-1].left == len(left[name])
        readable = [text for text in given_ if isinstance(text, str) and "\ud800" not in text]
        assert next(row for row in rows if row.step == "text").bytes_left == sum(len(text.encode()) for text in readable)
        assert rows[-1].bytes_left == sum(len(text.encode()) for text in left[name])
        assert all(row.dropped >= 0 and row.left >= 0 for row in rows)
    # without filters, what is left is every different text that can be seen
    cleaned = {clean(text) for text in b if isinstance(text, str) and "\ud800" not in text and text.strip()}
    assert set(left["b"]) <= {text for text in cleaned if text.strip()}


@given(parts=st.lists(st.lists(st.integers(1, 20), max_size=8), max_size=5), most=st.integers(1, 30))
def test_a_shard_is_closed_before_it_would_hold_more(parts: list[list[int]], most: int):
    expected: list[list[int]] = []
    for length in (length for part in parts for length in part):
        if not expected or sum(expected[-1]) + length > most:
            expected.append([])
        expected[-1].append(length)
    packed = list(pack(((k, np.array(part, dtype=np.int64), 1000 * k) for k, part in enumerate(parts)), most))
    assert [[length for p in pieces for length in parts[p.part][p.first : p.last]] for pieces in packed] == expected
    for piece in (piece for pieces in packed for piece in pieces):
        before = 1000 * piece.part + sum(parts[piece.part][: piece.first])
        assert (piece.start, piece.stop) == (before, before + sum(parts[piece.part][piece.first : piece.last]))


def test_shards_are_what_a_writer_makes_of_the_documents(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(documents, "PART", 2000)
    rng = random.Random(6)
    sources = [lines(name, [sentence(rng, rng.randrange(1, 90)) for _ in range(50)]) for name in "ab"]
    manifest = dataset(*sources, "shard_tokens=1500", "validation=0.3")
    writer = DatasetWriter(Path("again"), manifest.tokenizer_path.read_bytes(), manifest.sources, 1500, manifest.recipe)
    splits = [(source, split) for source in "ab" for split in ("train", "validation")]
    for source, split in splits:
        for document in documents_of(manifest, split):
            if document.source == source:
                writer.add(source, split, document.tokens[1:], document.text_bytes)
    # in another order, for a writer numbers shards as they fill
    assert len(writer.finish().shards) == len(manifest.shards) > 8
    assert [(s.source, s.split) for s in manifest.shards] == sorted((s.source, s.split) for s in manifest.shards)
    found, expected = (
        {(s.source, s.split, s.tokens, s.documents, s.members["tokens.bin"].crc32c) for s in Manifest.load(name).shards}
        for name in ("out", "again")
    )
    assert found == expected


def test_a_part_that_is_there_is_not_processed_again_unless_other_records_come(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(documents, "PART", 1)
    done: list[int] = []
    process_part = documents.process_part
    monkeypatch.setattr(documents, "process_part", lambda part, **more: (done.append(part.number), process_part(part, **more)))

    def run(texts: list[object]) -> list[str]:
        recipe = load_recipe(["out=out", lines("a", texts)])
        with opened(Path("out"), "key") as work, Workers(1) as workers:
            documents.run(recipe, work, workers, lambda record: None)
            work.reading.unlink()
            return [text for k in range(len(texts)) for _, text in read_documents(work.documents(k))]

    assert run(["one", "two", "three"]) == ["one", "two", "three"]
    # as when a dataset on the hub was changed meanwhile
    assert run(["one", "zwei", "three"]) == ["one", "zwei", "three"]
    assert done == [0, 1, 2, 1]


def test_a_damaged_shard_of_a_killed_run_is_written_again(folder: Path, monkeypatch: pytest.MonkeyPatch):
    rng = random.Random(7)
    words = [lines("a", [sentence(rng, 60) for _ in range(20)]), "shard_tokens=1000"]
    whole = dataset(*words, "out=whole")
    with monkeypatch.context() as patch:
        patch.setattr("data_prep.prepare._finish", None)
        with pytest.raises(TypeError):
            dataset(*words)
    shard = Path("out/shard-00001.tar")
    content = shard.read_bytes()
    shard.write_bytes(content[:-1] + b"x")
    Path("out/shard-00099.tar").write_bytes(b"of another run")
    assert dataset(*words).shards == whole.shards
    assert shard.read_bytes() == content
    assert not Path("out/shard-00099.tar").exists()


def test_tables_hold_what_would_break_them():
    assert markdown(["a", "b"], [["x|y", 1234], ["z", None]]) == "| a | b |\n| --- | ---: |\n| x\\|y | 1,234 |\n| z |  |\n"
    assert markdown(["n"], [[-5]]) == "| n |\n| ---: |\n| -5 |\n"
    assert code("a`b\nc") == "`` a`b c ``"
    assert Work(Path("w")).ledger(7) == Path("w/documents/000007.json")
