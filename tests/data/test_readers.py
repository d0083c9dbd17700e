"""Reading text and JSON lines: ids stay whatever stands around a record, and what cannot be read is counted with its place."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.readers import READERS, JsonLines, Parquet, SourceCode, Tars, TextFiles
from llm.errors import ConfigError, DataError
from tests.data.reading import GOOD, lines, read, read_all


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


def test_nothing_that_never_ends_or_leads_nowhere_is_opened(tmp_path: Path):
    (tmp_path / "a.txt").write_text("text")
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "device.txt").symlink_to("/dev/zero")
    (tmp_path / "itself.txt").symlink_to("itself.txt")
    assert read(TextFiles(str(tmp_path))) == (
        {"s:a.txt": "text"},
        [
            ("pipe or device", "device.txt"),
            ("unreadable (Too many levels of symbolic links)", "itself.txt"),
            ("pipe or device", "pipe.txt"),
        ],
    )


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


@pytest.mark.parametrize("kind", [kind for kind in READERS if kind != "python-stdlib"])
def test_settings_are_checked(kind: str):
    with pytest.raises(ConfigError, match=r"here\.(root|path) \(none\) must be given"):
        READERS[kind]().check("here")
    for name in ("max_bytes", "rows"):
        if hasattr(READERS[kind](), name):
            with pytest.raises(ConfigError, match=rf"here\.{name} \(0\) must be at least 1"):
                READERS[kind](root="r", **{name: 0}).check("here")
    with pytest.raises(ConfigError, match=r"source-code\.ignore \(!\) must be a pattern"):
        SourceCode("r", ignore=["!"]).check()


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


PATHS = st.text("ab/", min_size=1, max_size=5).map(lambda s: "/".join(filter(None, s.split("/")))).filter(bool)
NAMES = st.lists(PATHS, max_size=6)


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
