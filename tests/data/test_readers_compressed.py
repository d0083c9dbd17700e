"""Reading gzip and zstd: whole, cut anywhere and damaged anywhere."""

import gzip
import json
import random
from pathlib import Path

import pytest
import zstandard

from data_prep.readers import JsonLines, TextFiles
from data_prep.readers.streams import BrokenStream, read_lines
from tests.data.reading import GOOD, lines, read


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


def test_text_files_are_decompressed(tmp_path: Path):
    text = "one line\nand another\n" * 50
    for name, content in (
        ("a.txt", text.encode()),
        ("b.txt.gz", gzip.compress(text.encode())),
        ("c.txt.zst", zstandard.compress(text.encode())),
        ("d.txt.gz", gzip.compress(text.encode())[:-9]),
        ("e.txt.gz", b"no gzip"),
        ("f.txt.zst", zstandard.compress(text.encode() * 2)),
    ):
        (tmp_path / name).write_bytes(content)
    texts, dropped = read(TextFiles(str(tmp_path), ["*.txt", "*.txt.gz", "*.txt.zst"], max_bytes=len(text)))
    assert texts == {f"s:{name}": text for name in ("a.txt", "b.txt.gz", "c.txt.zst")}
    assert dropped == [("truncated", "d.txt.gz"), ("damaged", "e.txt.gz"), ("too large", "f.txt.zst")]
