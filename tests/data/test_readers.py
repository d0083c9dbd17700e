"""Reading: every record comes with the same id whatever stands around it, and what cannot be read is counted with its place."""

import gzip
import io
import json
import os
import random
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.clean import Report
from data_prep.readers import READERS, HuggingFace, JsonLines, Parquet, ReadLog, Record, SourceCode, Tars, TextFiles
from data_prep.readers.streams import BrokenStream, read_lines
from llm.errors import ConfigError, DataError

Dropped = list[tuple[str, str]]


def read(reader) -> tuple[dict[str, str], Dropped]:
    """(text by id, (reason, place) of what was dropped), after the law that they add up to what was read."""
    records, dropped, _ = read_all(reader)
    return {record.id: record.text for record in records}, dropped


def read_all(reader) -> tuple[list[Record], Dropped, Report]:
    reader.check()
    report, dropped = Report(), []
    records = list(reader.records(ReadLog("s", report, lambda reason, place: dropped.append((reason, place)))))
    assert len({record.id for record in records}) == len(records)
    drops = sum(count for reason, count in report.counts.items() if reason != "read")
    assert report.counts["read"] == len(records) + drops
    assert set(report.examples) == {reason for reason, _ in dropped}
    return records, dropped, report


def lines(*records: object) -> bytes:
    return b"".join(r if isinstance(r, bytes) else json.dumps(r).encode() + b"\n" for r in records)


GOOD = lines({"text": "one"}, {"text": "two"})


# --- text


def test_text_files_are_one_document_each(tmp_path: Path):
    (tmp_path / "b" / "deep").mkdir(parents=True)
    for name, content in {
        "b/deep/x.md": b"\xef\xbb\xbfmark",
        "a.txt": b"a\r\n",
        "b.txt": b"caf\xe9",
        "c.rst": b"not asked for",
    }.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "gone.txt").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "big.txt").write_bytes(b"x" * 100)
    texts, dropped = read(TextFiles(str(tmp_path), max_bytes=50))
    assert texts == {"s:a.txt": "a\r\n", "s:b/deep/x.md": "mark"}
    assert list(texts) == sorted(texts)
    assert dropped == [
        ("undecodable", "b.txt"),
        ("too large", "big.txt"),
        ("unreadable (No such file or directory)", "gone.txt"),
        ("link to a folder", "loop/"),
    ]


def test_a_name_that_is_no_utf8_has_an_id(tmp_path: Path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_text("text")
    assert read(TextFiles(str(tmp_path))) == ({"s:caf\\xe9.txt": "text"}, [])


def test_a_folder_that_cannot_be_listed_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b.txt").write_text("text")
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("/a"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert read(TextFiles(str(tmp_path))) == ({"s:b.txt": "text"}, [("unreadable folder", "a/")])


@pytest.mark.parametrize("reader", [TextFiles, JsonLines, Parquet, Tars, SourceCode])
def test_no_files_at_all_is_an_error(tmp_path: Path, reader: type):
    with pytest.raises(DataError, match=r"root \(.*none\) does not exist"):
        read(reader(str(tmp_path / "none")))
    with pytest.raises(DataError, match=r"match nothing in .*; correct the patterns"):
        read(reader(str(tmp_path)))


@pytest.mark.parametrize("kind", READERS)
def test_settings_are_checked(kind: str):
    with pytest.raises(ConfigError, match=r"here\.(root|path) \(none\) must be given"):
        READERS[kind]().check("here")
    for name in ("max_bytes", "rows"):
        if hasattr(READERS[kind](), name):
            with pytest.raises(ConfigError, match=rf"here\.{name} \(0\) must be at least 1"):
                READERS[kind](root="r", **{name: 0}).check("here")
    with pytest.raises(ConfigError, match=r"source-code\.ignore \(!\) must be a pattern"):
        SourceCode("r", ignore=["!"]).check()


# --- jsonl


def test_every_bad_line_is_named(tmp_path: Path):
    bad = lines(
        {"text": "one", "url": "u", "other": 1},
        b"\n",
        b"{broken\n",
        b'{"text": "caf\xe9"}\n',
        {"body": "x"},
        {"text": 3},
        [1],
        b'{"text": "\\ud800"}\n',
        b"[" * 100_000 + b"\n",
        b'{"text": "' + b"x" * 300_000 + b'"}\n',
        {"text": None},
        b'{"text": "last without line end"}',
    )
    (tmp_path / "bad.jsonl").write_bytes(bad)
    (tmp_path / "good.jsonl").write_bytes(b"\xef\xbb\xbf" + GOOD)
    records, dropped, report = read_all(JsonLines(str(tmp_path), metadata=["url"], max_bytes=200_000))
    assert [(r.id, r.text, r.metadata) for r in records] == [
        ("s:bad.jsonl#1", "one", {"url": "u"}),
        ("s:bad.jsonl#12", "last without line end", {}),
        ("s:good.jsonl#1", "one", {}),
        ("s:good.jsonl#2", "two", {}),
    ]
    assert dropped == [
        ("malformed", "bad.jsonl#3"),
        ("undecodable", "bad.jsonl#4"),
        ("no text", "bad.jsonl#5"),
        ("text is no string", "bad.jsonl#6"),
        ("malformed", "bad.jsonl#7"),
        ("undecodable", "bad.jsonl#8"),
        ("malformed", "bad.jsonl#9"),
        ("too large", "bad.jsonl#10"),
        ("no text", "bad.jsonl#11"),
    ]
    assert report.examples["malformed"] == ["bad.jsonl#3", "bad.jsonl#7", "bad.jsonl#9"]


def compress(suffix: str, content: bytes) -> bytes:
    """Two members or frames, as `cat a.gz b.gz` makes."""
    half = len(content) // 2
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[suffix]
    return pack(content[:half]) + pack(content[half:])


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_compressed_files_are_read_whole(tmp_path: Path, suffix: str):
    content = lines(*({"text": f"text {k} {'word ' * (k % 50)}"} for k in range(3000)))
    (tmp_path / f"a.jsonl{suffix}").write_bytes(compress(suffix, content))
    texts, dropped = read(JsonLines(str(tmp_path), metadata=["url"]))
    assert (len(texts), dropped) == (3000, [])
    assert texts[f"s:a.jsonl{suffix}#2001"].startswith("text 2000 ")


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_stream_cut_anywhere_is_counted_and_the_others_are_read(tmp_path: Path, suffix: str):
    rng = random.Random(0)
    content = lines(*({"text": str(rng.random())} for _ in range(400)))
    whole = compress(suffix, content)
    path = tmp_path / f"a.jsonl{suffix}"
    (tmp_path / "z.jsonl").write_bytes(GOOD)
    expected = {f"s:{path.name}#{k}": json.loads(line)["text"] for k, line in enumerate(content.splitlines(), start=1)}
    # gzip's header is known by two bytes
    for cut in sorted({1, 5, len(whole) - 1, *rng.sample(range(1, len(whole)), 40)}):
        path.write_bytes(whole[:cut])
        texts, dropped = read(JsonLines(str(tmp_path)))
        assert texts.pop("s:z.jsonl#1") == "one"
        assert texts.pop("s:z.jsonl#2") == "two"
        assert texts.items() <= expected.items()
        assert [reason for reason, _ in dropped] == ["damaged" if cut == 1 and suffix == ".gz" else "truncated"], cut
        assert dropped[0][1] == f"{path.name}#{len(texts) + 1} and the rest"


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_no_flipped_byte_of_a_stream_is_a_traceback(tmp_path: Path, suffix: str):
    """gzip ends in a checksum; zstd's frames have one only if asked for, so a flip may pass there as other text."""
    rng = random.Random(1)
    whole = compress(suffix, lines(*({"text": str(rng.random())} for _ in range(100))))
    path = tmp_path / f"a.jsonl{suffix}"
    named = 0
    for at in rng.sample(range(len(whole)), 150):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        named += bool(read(JsonLines(str(tmp_path)))[1])
    # gzip does not guard all of its header: the time, for one
    assert named > 120 if suffix == ".gz" else named > 0
    path.write_bytes(b"no stream at all")
    assert read(JsonLines(str(tmp_path)))[1] == [("damaged", f"{path.name}#1 and the rest")]


def test_a_file_without_line_ends_does_not_fill_the_memory(tmp_path: Path):
    path = tmp_path / "a.zst"
    path.write_bytes(zstandard.compress(b"x" * 50_000_000 + b"\nshort\n"))
    assert [(k, line) for k, line in read_lines(path, 1000)] == [(1, None), (2, b"short\n")]
    path.write_bytes(zstandard.compress(b"x" * 100)[:-3])
    with pytest.raises(BrokenStream, match="truncated"):
        list(read_lines(path, 1000))


# --- parquet


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


# --- tars


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


# --- source code


def test_source_code_without_what_machines_made(tmp_path: Path):
    files = {
        ".gitignore": b"*.log\n/out/\n!keep.log\n",
        "sub/.gitignore": b"!x.log\nlocal.py\n",
        "a.py": b"print('a')\n",
        "x.log": b"log",
        "keep.log": b"kept",
        "out/a.py": b"built",
        "sub/out/a.py": b"kept",
        "sub/x.log": b"kept",
        "sub/local.py": b"left out",
        "local.py": b"kept",
        "vendor/lib.c": b"theirs",
        "web/node_modules/m/index.js": b"theirs",
        "web/app.min.js": b"small",
        "web/bundle.js": b"x" * 500,
        "web/wide.py": b"x" * 500,
        "api_pb2.py": b"made",
        "gen.go": b"// Code generated by x. DO NOT EDIT.\npackage p\n",
        "late.py": b"\n" * 9 + b"# automatically generated\n",
        "image.png": b"\x89PNG\0\0",
        "latin.c": b"// caf\xe9",
        "big.sql": b"x\n" * 600,
        "secret.py": b"x",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    records, dropped, _ = read_all(SourceCode(str(tmp_path), ignore=["secret*"], max_bytes=1000))
    kept = [".gitignore", "a.py", "keep.log", "late.py", "local.py", "sub/.gitignore", "sub/out/a.py", "sub/x.log", "web/wide.py"]
    assert [record.metadata["path"] for record in records] == kept
    assert dropped == [
        ("generated", "api_pb2.py"),
        ("too large", "big.sql"),
        ("generated", "gen.go"),
        ("binary", "image.png"),
        ("undecodable", "latin.c"),
        ("ignored", "out/"),
        ("ignored", "secret.py"),
        ("ignored", "sub/local.py"),
        ("vendored", "vendor/"),
        ("minified", "web/app.min.js"),
        ("minified", "web/bundle.js"),
        ("vendored", "web/node_modules/"),
        ("ignored", "x.log"),
    ]
    everything = SourceCode(str(tmp_path), gitignore=False, vendored=True, generated=True)
    assert {reason for reason, _ in read(everything)[1]} == {"binary", "undecodable"}


def test_ignored_files_are_those_of_git(tmp_path: Path):
    rng = random.Random(0)
    names = [f"{a}/{b}/{c}.{d}" for a in "xy" for b in "uv" for c in "ab" for d in ("py", "log")]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("text")
    patterns = ["*.log", "!a.log", "u/", "/x", "v/b.*", "**/a.py", "!u/", "x/**/b.py", "\\!a", "# no", "!*.py", "v/**"]
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True, timeout=30)
    for _ in range(25):
        for folder in (".", "x", "y/v"):
            (tmp_path / folder / ".gitignore").write_text("\n".join(rng.sample(patterns, 3)))
        command = ["git", "-C", str(tmp_path), "ls-files", "--others", "--exclude-standard"]
        theirs = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30).stdout.split()
        try:
            ours = [id.removeprefix("s:") for id in read(SourceCode(str(tmp_path)))[0]]
        except DataError:
            ours = []
        assert ours == sorted(theirs, key=lambda name: name.split("/"))


# --- Hugging Face


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


# --- ids


NAMES = st.lists(st.text("ab/", min_size=1, max_size=5).map(lambda s: s.strip("/").replace("//", "/")).filter(bool), max_size=6)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(first=NAMES, more=NAMES)
def test_ids_do_not_change_when_files_come(tmp_path_factory: pytest.TempPathFactory, first: list[str], more: list[str]):
    root = tmp_path_factory.mktemp("ids")

    def write(names: list[str]) -> None:
        for name in names:
            path = root / "d" / f"{name}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(lines({"text": name}, b"bad\n", {"text": f"{name} again"}))

    write(["always", *first])
    before, _ = read(JsonLines(str(root)))
    write(more)
    after, _ = read(JsonLines(str(root)))
    assert before.items() <= after.items()
    assert [id for id in after if id in before] == list(before)
    assert list(after) == sorted(after, key=lambda id: (id.rpartition("#")[0].split("/"), int(id.rpartition("#")[2])))
