"""Reading parquet, tars and Hugging Face datasets, whole and damaged."""

import io
import random
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.readers import HuggingFace, Parquet, Record, Tars
from llm.errors import DataError
from tests.data.reading import GOOD, read, read_all


def write_parquet(path: Path, rows: int = 10, **columns) -> bytes:
    table = pa.table({"text": [f"text {k}" for k in range(rows)], "url": list(range(rows))} | columns)
    pq.write_table(table, path, row_group_size=4, compression="none", write_page_checksum=False)
    return path.read_bytes()


def test_parquet_rows(tmp_path: Path):
    write_parquet(tmp_path / "a.parquet", text=["x", None, *"cdefghij"])
    records, dropped, _ = read_all(Parquet(str(tmp_path), metadata=["url", "none"], rows=3))
    assert [(r.id, r.text, r.metadata) for r in records[:2]] == [
        ("s:a.parquet#0", "x", {"url": 0}),
        ("s:a.parquet#2", "c", {"url": 2}),
    ]
    assert [r.id for r in records] == [f"s:a.parquet#{k}" for k in range(10) if k != 1]
    assert dropped == [("no text", "a.parquet#1")]


def test_parquet_columns_of_other_types(tmp_path: Path):
    write_parquet(tmp_path / "dictionary.parquet", text=pa.array(list("ababababab")).dictionary_encode())
    write_parquet(tmp_path / "large.parquet", text=pa.array(list("abcdefghij"), pa.large_string()))
    write_parquet(tmp_path / "number.parquet", text=list(range(10)))
    pq.write_table(pa.table({"body": ["x"] * 3}), tmp_path / "other.parquet")
    raw = pa.array([b"a", b"caf\xe9", b"c"], pa.binary())
    utf8 = pa.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2])
    pq.write_table(pa.table({"text": utf8}), tmp_path / "undecodable.parquet")
    texts, dropped = read(Parquet(str(tmp_path)))
    assert len(texts) == 22
    assert dropped == [
        ("text is no string", "number.parquet (int64)"),
        ("no text", "other.parquet (columns: body)"),
        ("undecodable", "undecodable.parquet#1"),
    ]
    report = read_all(Parquet(str(tmp_path)))[2]
    assert report.counts == {"read": 36, "text is no string": 10, "no text": 3, "undecodable": 1}


def test_damaged_parquet_is_counted_and_the_others_are_read(tmp_path: Path):
    whole = write_parquet(tmp_path / "a.parquet", 40)
    write_parquet(tmp_path / "z.parquet", 2)
    rng = random.Random(0)
    for cut in (0, 3, 100, len(whole) - 1):
        (tmp_path / "a.parquet").write_bytes(whole[:cut])
        assert read(Parquet(str(tmp_path))) == (
            {"s:z.parquet#0": "text 0", "s:z.parquet#1": "text 1"},
            [("damaged", "a.parquet")],
        )
    partly = 0
    for at in rng.sample(range(len(whole)), 100):
        damaged = bytearray(whole)
        damaged[at] ^= 0xFF
        (tmp_path / "a.parquet").write_bytes(damaged)
        texts, dropped = read(Parquet(str(tmp_path)))
        assert texts["s:z.parquet#1"] == "text 1"
        partly += bool(dropped) and len(texts) > 2
    # a row group's damage leaves the others
    assert partly > 5


def write_tar(path: Path, members: dict[str, bytes], order: Callable = list) -> bytes:
    with tarfile.open(path, "w") as tar:
        for name in order(members):
            info = tarfile.TarInfo(name)
            info.size = len(members[name])
            tar.addfile(info, io.BytesIO(members[name]))
    return path.read_bytes()


def test_members_of_a_key_are_one_sample(tmp_path: Path):
    members = {
        "d/1.txt": b"one",
        "d/1.cls": b"7",
        "d/1.json": b'{"url": "u", "other": 2}',
        "d/2.a.txt": b"not this member",
        "d/3.txt": b"caf\xe9",
        "README": b"x",
        "4.txt": b"four",
        "4.json": b"{",
        "5.txt": b"x" * 100,
        "6.v1.txt": b"x",
        "6.txt": b"six",
        "7.cls": b"1",
    }
    write_tar(tmp_path / "a.tar", members)
    records, dropped, _ = read_all(Tars(str(tmp_path), metadata=["url"], max_bytes=50))
    assert records == [Record("s:a.tar#d/1", "one", {"cls": 7, "url": "u"}), Record("s:a.tar#6", "six", {})]
    assert sorted(dropped) == [
        ("malformed", "a.tar#4"),
        ("member without a key", "a.tar#README"),
        ("no text", "a.tar#7"),
        ("no text", "a.tar#d/2"),
        ("too large", "a.tar#5"),
        ("undecodable", "a.tar#d/3"),
    ]
    records, _, _ = read_all(Tars(str(tmp_path), extension="json", text="url"))
    assert records == [Record("s:a.tar#d/1", "u", {"cls": 7})]


# webdataset leaves its files to the garbage collector
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_samples_are_those_of_webdataset(tmp_path: Path):
    import webdataset

    rng = random.Random(0)
    path = tmp_path / "a.tar"
    members = {f"{'d.x/' * (k % 3 == 0)}{k:03d}.{kind}": f"{k}".encode() for k in range(50) for kind in ("txt", "cls", "x.y")}
    members |= {f"{'long' * 40}/{k}.txt": b"pax" for k in range(3)}
    write_tar(path, members, lambda names: sorted(names, key=lambda name: (name.split(".")[-2], rng.random())))
    theirs = {s["__key__"]: s["txt"].decode() for s in webdataset.WebDataset(str(path), shardshuffle=False) if "txt" in s}
    ours, _ = read(Tars(str(tmp_path)))
    assert {id.removeprefix("s:a.tar#"): text for id, text in ours.items()} == theirs


def test_a_damaged_tar_is_counted_and_the_others_are_read(tmp_path: Path):
    whole = write_tar(tmp_path / "a.tar", {f"{k}.txt": f"text {k}".encode() for k in range(8)})
    write_tar(tmp_path / "z.tar", {"1.txt": b"one"})
    data = 8 * 1024
    for cut in [*range(0, data, 300), data]:
        (tmp_path / "a.tar").write_bytes(whole[:cut])
        texts, dropped = read(Tars(str(tmp_path)))
        assert texts["s:z.tar#1"] == "one"
        assert len(texts) <= 1 + cut // 1024
        assert len(dropped) == 1, cut
        assert dropped[0][1].endswith("and the rest")
    for header in range(8):
        damaged = bytearray(whole)
        damaged[header * 1024 + 148] ^= 0xFF
        (tmp_path / "a.tar").write_bytes(damaged)
        texts, dropped = read(Tars(str(tmp_path)))
        assert len(texts) == max(header, 1)
        assert [reason for reason, _ in dropped] == ["damaged"]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    return tmp_path


def test_a_saved_dataset(offline: Path):
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_dict({"text": ["a", None, "c"], "url": [1, 2, 3], "heavy": [[0.0]] * 3})
    path = str(offline / "one")
    rows.save_to_disk(path)
    records, dropped, _ = read_all(HuggingFace(path, metadata=["url"]))
    assert records == [Record("s:#0", "a", {"url": 1}), Record("s:#2", "c", {"url": 3})]
    assert dropped == [("no text", "#1")]
    path = str(offline / "two")
    DatasetDict(train=rows, test=rows.select([2])).save_to_disk(path)
    assert list(read(HuggingFace(path))[0]) == ["s:test#0", "s:train#0", "s:train#2"]
    assert read(HuggingFace(path, split="test")) == ({"s:test#0": "c"}, [])
    with pytest.raises(DataError, match=r"split \(dev\) is none of .*; name one of test, train"):
        read(HuggingFace(path, split="dev"))
    with pytest.raises(DataError, match=r"text \(body\) is no column of .*; name one of text, url, heavy"):
        read(HuggingFace(path, text="body"))


def test_what_load_dataset_takes_is_streamed(offline: Path):
    (offline / "data").mkdir()
    (offline / "data" / "train.jsonl").write_bytes(GOOD)
    assert read(HuggingFace(str(offline / "data"))) == ({"s:train#0": "one", "s:train#1": "two"}, [])
    (offline / "data" / "train.jsonl").write_bytes(GOOD + b"{broken\n")
    dropped = read(HuggingFace(str(offline / "data")))[1]
    assert [place for _, place in dropped] == ["train#0 and the rest"]
    with pytest.raises(DataError, match=r"path \(.*/none\) cannot be loaded"):
        read(HuggingFace(str(offline / "none")))
