"""Tars of others, indexed once: what webdataset reads from them is what is trained on, and no damage passes unseen."""

import argparse
import gzip
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.convert import ConvertConfig, encode_texts, index_arrays, index_command
from data_prep.verify import verify
from llm.data import DataConfig, Manifest, TokenStream, documents, load_tokenizer
from llm.data.foreign import DTYPES, open_shard
from llm.data.manifest import Source
from llm.data.remote import CacheConfig
from llm.data.shard import OpenFiles
from llm.data.write import DatasetWriter
from llm.errors import BraidError, DataError

pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
ALL = ConvertConfig(source="s", validation=0.0)
Arrays = list[list[int]]


def write_tar(path: Path, arrays: Arrays, dtype: str = "<i4", extension: str = "npy", key: str = "{:06d}") -> Path:
    """By webdataset's own writer."""
    path.parent.mkdir(exist_ok=True)
    with webdataset.TarWriter(str(path), encoder=False) as tar:
        for k, ids in enumerate(arrays):
            buffer = io.BytesIO()
            np.save(buffer, np.array(ids, dtype))
            tar.write({"__key__": key.format(k), extension: buffer.getvalue(), "json": b"{}"})
    return path


def read_tar(path: Path, extension: str = "npy") -> Arrays:
    """By webdataset's own reader."""
    samples = webdataset.WebDataset(str(path), shardshuffle=False)
    return [np.load(io.BytesIO(sample[extension])).astype(np.int64).tolist() for sample in samples if extension in sample]


def stored(manifest: Manifest, split: str = "train") -> Arrays:
    return [document.tokens.tolist() for document in documents(manifest, split)]


def random_arrays(count: int, seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 300, rng.integers(1, 60)).tolist() for _ in range(count)]


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES if dtype != "|i1"])
def test_documents_are_those_that_webdataset_reads(dtype: str, tokenizer_json: bytes, tmp_path: Path):
    high = 250 if dtype == "|u1" else 299
    tar = write_tar(tmp_path / "t.tar", [[1, 2, high], [7], list(range(1, 128))], dtype)
    index_arrays([tar], tokenizer_json, tmp_path / "out", ALL)
    manifest = Manifest.load(tmp_path / "out")
    verify(manifest)
    assert stored(manifest) == [[0, *ids] for ids in read_tar(tar)]


def test_marks_at_the_ends_are_not_doubled(tokenizer_json: bytes, tmp_path: Path):
    tar = write_tar(tmp_path / "t.tar", [[0, 1, 2], [3, 4, 0], [0], [], [0, 0, 5], [6, 9]])
    index_arrays([tar], tokenizer_json, tmp_path / "out", ALL)
    verify(Manifest.load(tmp_path / "out"))
    assert stored(Manifest.load(tmp_path / "out")) == [[0, 1, 2], [0, 3, 4], [0, 5], [0, 6, 9]]
    assert "- documents empty: 2" in (tmp_path / "out" / "CARD.md").read_text()
    tar = write_tar(tmp_path / "u.tar", [[1, 0, 0, 2], [9, 3, 9]])
    with pytest.raises(DataError, match=r"u\.tar#000000: id 0 at 1 marks a boundary inside of a document; add --inside split"):
        index_arrays([tar], tokenizer_json, tmp_path / "cut", ALL)
    index_arrays([tar], tokenizer_json, tmp_path / "cut", ConvertConfig(mark=9, inside="split", validation=0.0))
    assert stored(Manifest.load(tmp_path / "cut")) == [[0, 1], [0, 2], [0, 3]]


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_range_of_tokens_is_that_of_the_documents_end_to_end(data: st.DataObject, tokenizer_json: bytes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("f")
    arrays = data.draw(st.lists(st.lists(st.integers(1, 299), min_size=1, max_size=7), min_size=1, max_size=9))
    manifest, _ = index_arrays([write_tar(folder / "t.tar", arrays)], tokenizer_json, folder / "out", ALL)
    reader = open_shard(manifest, manifest.shards[0], OpenFiles())
    tokens = [id for ids in arrays for id in (0, *ids)]
    for _ in range(5):
        low = data.draw(st.integers(0, len(tokens)))
        high = data.draw(st.integers(low, len(tokens)))
        # again, when what is touched was checked before
        for _ in range(2):
            assert reader.tokens(low, high).tolist() == tokens[low:high]
    assert reader.doc_ends.tolist() == np.cumsum([len(ids) + 1 for ids in arrays]).tolist()


@pytest.mark.parametrize("packing", ["concat", "bestfit"])
def test_the_stream_is_the_one_of_the_same_documents_in_shards(packing: str, tokenizer_json: bytes, tmp_path: Path):
    arrays = random_arrays(80)
    index_arrays([write_tar(tmp_path / "t.tar", arrays)], tokenizer_json, tmp_path / "indexed", ALL)
    writer = DatasetWriter(tmp_path / "shards", tokenizer_json, {"s": Source(1.0, "x")})
    for ids in arrays:
        writer.add("s", "train", ids, 1)
    writer.finish()
    indices = np.arange(40)
    rows = [
        TokenStream(Manifest.load(tmp_path / name), "train", DataConfig("", 32, packing=packing), seed=3).rows(indices)
        for name in ("indexed", "shards")
    ]
    for ours, theirs in zip(*rows, strict=True):
        assert np.array_equal(ours, theirs)


def test_splits_and_bounds(tokenizer_json: bytes, tmp_path: Path):
    tars = [write_tar(tmp_path / f"{k}.tar", random_arrays(60, seed=k), extension="tokens.npy") for k in range(2)]
    config = ConvertConfig(source="s", licence="MIT", weight=2.0, validation=0.3, shard_tokens=300)
    index_arrays(tars, tokenizer_json, tmp_path / "out", config, "tokens.npy")
    manifest = Manifest.load(tmp_path / "out")
    verify(manifest)
    assert sorted(stored(manifest) + stored(manifest, "validation")) == sorted(
        [0, *ids] for tar in tars for ids in read_tar(tar, "tokens.npy")
    )
    assert all(shard.tokens <= 300 for shard in manifest.shards)
    assert {shard.split for shard in manifest.shards} == {"train", "validation"}
    assert manifest.sources == {"s": Source(2.0, "MIT")}
    alone, _ = index_arrays(tars[1:], tokenizer_json, tmp_path / "alone", config, "tokens.npy")
    assert {tuple(ids) for ids in stored(alone, "validation")} <= {tuple(ids) for ids in stored(manifest, "validation")}


def test_bytes_of_text_are_those_of_the_text(tokenizer_json: bytes, tmp_path: Path):
    manifest, _ = index_arrays([write_tar(tmp_path / "t.tar", random_arrays(9))], tokenizer_json, tmp_path / "out", ALL)
    tokenizer = load_tokenizer(manifest.tokenizer_path)
    for document in documents(manifest, "train"):
        text = b"".join(_bytes_of(tokenizer.id_to_token(id)) for id in document.tokens[1:].tolist())
        assert document.text_bytes == len(text)


def _bytes_of(token: str) -> bytes:
    from data_prep.byte_level import ALPHABET

    return bytes(ALPHABET[character] for character in token)


def test_tars_below_the_dataset_move_with_it(tokenizer_json: bytes, tmp_path: Path):
    (tmp_path / "d" / "tars").mkdir(parents=True)
    tar = write_tar(tmp_path / "d" / "tars" / "t.tar", random_arrays(5))
    outside = write_tar(tmp_path / "u.tar", random_arrays(5, seed=2))
    manifest, _ = index_arrays([tar, outside], tokenizer_json, tmp_path / "d", ALL)
    assert [shard.foreign.path for shard in manifest.shards] == ["tars/t.tar", str(outside)]
    (tmp_path / "d").rename(tmp_path / "e")
    moved = Manifest.load(tmp_path / "e")
    assert moved.hash == manifest.hash
    verify(moved)


@pytest.fixture
def indexed(tokenizer_json: bytes, tmp_path: Path) -> Manifest:
    tars = [write_tar(tmp_path / f"{k}.tar", random_arrays(30, seed=k)) for k in range(2)]
    return index_arrays(tars, tokenizer_json, tmp_path / "out", ALL)[0]


def test_every_flipped_byte_of_an_array_names_tar_and_document(indexed: Manifest):
    shard = indexed.shards[1]
    reader = open_shard(indexed, shard, OpenFiles())
    offset = int(reader._arrays["offset"][7])
    content = bytearray(Path(shard.foreign.path).read_bytes())
    content[offset + 1] ^= 1
    Path(shard.foreign.path).write_bytes(content)
    assert reader.tokens(0, int(reader.doc_ends[6])).tolist() == [id for ids in random_arrays(30, seed=1)[:7] for id in (0, *ids)]
    with pytest.raises(DataError, match=rf"tar .*1\.tar: document 7 of index-00001\.tar \(at byte {offset}\) is corrupt"):
        reader.tokens(int(reader.doc_ends[6]), int(reader.doc_ends[6]) + 2)
    with pytest.raises(DataError, match=r"document 7 of index-00001"):
        verify(indexed)


@pytest.mark.parametrize("part", range(8))
def test_verify_finds_every_flipped_byte(part: int, indexed: Manifest):
    index = indexed.root / indexed.shards[0].path
    for path in (Path(indexed.shards[0].foreign.path), index):
        content = path.read_bytes()
        for at in np.random.default_rng(part).integers(0, len(content), 12).tolist():
            path.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
            with pytest.raises(DataError):
                verify(indexed)
        path.write_bytes(content)
    verify(indexed)


def test_a_tar_of_another_size_or_none_is_named_at_load(indexed: Manifest):
    path = Path(indexed.shards[0].foreign.path)
    content = path.read_bytes()
    path.write_bytes(content[:-512])
    with pytest.raises(DataError, match=rf"0\.tar has {len(content) - 512} bytes where the manifest says {len(content)}"):
        Manifest.load(indexed.root)
    path.unlink()
    with pytest.raises(DataError, match=r"0\.tar is missing"):
        Manifest.load(indexed.root)


def test_manifests_without_foreign_tars_say_nothing_of_them(dataset: Manifest, indexed: Manifest):
    assert "foreign" not in (dataset.root / "manifest.json").read_text()
    assert Manifest.load(indexed.root) == indexed


def test_the_same_tars_give_the_same_index(indexed: Manifest, tokenizer_json: bytes, tmp_path: Path):
    tars = [tmp_path / "0.tar", tmp_path / "1.tar"]
    again, _ = index_arrays(tars, tokenizer_json, tmp_path / "again", ALL)
    assert {p.name: p.read_bytes() for p in again.root.iterdir()} == {p.name: p.read_bytes() for p in indexed.root.iterdir()}


def test_an_interrupted_index_is_made_again(indexed: Manifest, tokenizer_json: bytes, tmp_path: Path):
    (indexed.root / "manifest.json").unlink()
    manifest, _ = index_arrays([tmp_path / "1.tar"], tokenizer_json, indexed.root, ALL)
    assert {path.name for path in indexed.root.glob("*.tar")} == {shard.path for shard in manifest.shards} == {"index-00000.tar"}


def odd(path: Path, **members: bytes) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name.replace("_", "."))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npy_of(header: str) -> dict[str, bytes]:
    return {"a_npy": b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()}


ONE = npy(np.array([1, 2], "<i4"))
ODD = {
    "two dimensions": (
        {"a_npy": npy(np.ones((2, 2), "<i4"))},
        r"t\.tar#a \(<i4, shape \(2, 2\), 144 bytes\) must be a one-dimensional",
    ),
    "floats": ({"a_npy": npy(np.ones(3))}, r"\(<f8, shape \(3,\), \d+ bytes\) must be a one-dimensional array of whole numbers"),
    "cut": ({"a_npy": ONE[:-1]}, "must be a one-dimensional"),
    "no npy": ({"a_npy": b"text"}, r"t\.tar#a is no \.npy"),
    "a header of brackets": (npy_of("(" * 100), r"t\.tar#a is no \.npy"),
    "a header of signs": (npy_of("-" * 9000), r"t\.tar#a is no \.npy"),
    "pickles": ({"a_npy": npy(np.array([{}], dtype=object))}, "must be a one-dimensional"),
    "other ids": ({"a_npy": npy(np.array([300]))}, r"t\.tar#a: id 300 is not the tokenizer's, whose ids are below 300"),
    "negative ids": ({"a_npy": npy(np.array([-1]))}, "id -1 is not the tokenizer's"),
    "none": ({"a_txt": b"x"}, "hold no document"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_members_are_refused(name: str, tokenizer_json: bytes, tmp_path: Path):
    members, message = ODD[name]
    with pytest.raises(DataError, match=message):
        index_arrays([odd(tmp_path / "t.tar", **members)], tokenizer_json, tmp_path / "out", ALL)
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_tars_that_cannot_be_read_in_place_are_refused(tokenizer_json: bytes, tmp_path: Path):
    good = odd(tmp_path / "t.tar", a_npy=ONE)
    (tmp_path / "z.tar").write_bytes(gzip.compress(good.read_bytes()))
    (tmp_path / "cut.tar").write_bytes(good.read_bytes()[:600])
    for name in ("z.tar", "cut.tar"):
        with pytest.raises(DataError, match=rf"{name} is \w+, or compressed; copy it again, or unpack it"):
            index_arrays([tmp_path / name], tokenizer_json, tmp_path / "out", ALL)
    with pytest.raises(DataError, match=r"gone\.tar cannot be read \(No such file"):
        index_arrays([tmp_path / "gone.tar"], tokenizer_json, tmp_path / "out", ALL)
    with tarfile.open(tmp_path / "twice.tar", "w") as tar:
        for _ in range(2):
            info = tarfile.TarInfo("a.npy")
            info.size = len(ONE)
            tar.addfile(info, io.BytesIO(ONE))
    with pytest.raises(DataError, match=r"twice\.tar#a: two members end in \.npy"):
        index_arrays([tmp_path / "twice.tar"], tokenizer_json, tmp_path / "out", ALL)


def test_samples_that_give_no_document_are_counted(tokenizer_json: bytes, tmp_path: Path):
    tar = odd(tmp_path / "t.tar", a_npy=ONE, b_txt=b"x", c_txt=b"x", c_npy=ONE, _hidden=b"x", d_json=b"{}")
    _, counts = index_arrays([tar], tokenizer_json, tmp_path / "out", ALL)
    assert counts == {"kept": 2, "samples without .npy": 2, "members without a key": 1, "empty": 0}


@pytest.mark.parametrize(("extension", "field"), [("txt", "text"), ("json", "content")])
def test_texts_become_shards(extension: str, field: str, tokenizer_json: bytes, tmp_path: Path):
    texts = ["the quick brown fox", "x <|endoftext|> y", " \n", "é 日本"] * 30
    with webdataset.TarWriter(str(tmp_path / "t.tar"), encoder=False) as tar:
        for k, text in enumerate(texts):
            tar.write({"__key__": f"{k:03d}", extension: (text if extension == "txt" else json.dumps({field: text})).encode()})
    encode_texts([tmp_path / "t.tar"], tokenizer_json, tmp_path / "out", ALL, extension, field)
    manifest = Manifest.load(tmp_path / "out")
    verify(manifest)
    tokenizer = load_tokenizer(manifest.tokenizer_path)
    found = [tokenizer.decode(ids[1:], skip_special_tokens=False) for ids in stored(manifest)]
    assert found == [text for text in texts if text.strip()]
    assert [document.text_bytes for document in documents(manifest, "train")] == [len(text.encode()) for text in found]
    assert "- documents empty: 30" in (tmp_path / "out" / "CARD.md").read_text()
    with pytest.raises(DataError, match=r"tars hold no text in \.md \(read: 120, no text: 120\)"):
        encode_texts([tmp_path / "t.tar"], tokenizer_json, tmp_path / "none", ALL, "md")


def run(*words: str) -> None:
    parser = argparse.ArgumentParser()
    index_command.add_parser(parser.add_subparsers())
    arguments = parser.parse_args(["index", *words])
    arguments.run(arguments)


def test_the_command(tokenizer_json: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    Path("t.json").write_bytes(tokenizer_json)
    write_tar(tmp_path / "a.tar", [[7, 1, 2], [3]])
    odd(tmp_path / "b.tar", a_json=b'{"body": "the fox"}')
    run("a.tar", "--tokenizer", "t.json", "--out", "ids", "--document-token", "7", "--validation", "0", "--weight", "3")
    assert "documents kept: 2" in capsys.readouterr().out
    assert stored(Manifest.load("ids")) == [[0, 1, 2], [0, 3]]
    assert Manifest.load("ids").sources == {"indexed": Source(3.0, "unknown")}
    run("b.tar", "--tokenizer", "t.json", "--out", "text", "--extension", "json", "--field", "body", "--validation", "0")
    assert len(stored(Manifest.load("text"))) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--field", "x"], r"--field \(x\) is of --extension json, not npy"),
        (["--extension", "txt", "--out", "."], r"out \(\.\) holds other files"),
        (["--tokenizer", "none.json"], r"tokenizer none\.json does not exist"),
        (["--document-token", "999"], "document token 999 must be an id of the tokenizer"),
        (["--weight", "-1"], r"weight \(-1\.0\) must not be negative"),
        (["--weight", "nan"], r"weight \(nan\) must not be negative or infinite"),
        (["--source", "a b"], r"source \(a b\) is no name for a source"),
    ],
)
def test_bad_words_end_in_a_sentence(
    words: list[str], message: str, tokenizer_json: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("t.json").write_bytes(tokenizer_json)
    write_tar(tmp_path / "a.tar", [[1]])
    with pytest.raises(BraidError, match=message):
        run("a.tar", "--tokenizer", "t.json", "--out", "out", *words)


def test_a_tar_is_never_written_over(tokenizer_json: bytes, tmp_path: Path):
    tar = write_tar(tmp_path / "index-00000.tar", [[1]])
    before = tar.read_bytes()
    with pytest.raises(DataError, match=r"holds other files \(index-00000\.tar\)"):
        index_arrays([tar], tokenizer_json, tmp_path, ALL)
    tar = tar.rename(tmp_path / "shard-00000.tar")
    with pytest.raises(DataError, match=r"holds other files \(shard-00000\.tar\)"):
        encode_texts([tar], tokenizer_json, tmp_path, ALL)
    assert tar.read_bytes() == before
    beside = write_tar(tmp_path / "kept" / "index-train.tar", [[1]])
    index_arrays([beside], tokenizer_json, tmp_path / "kept", ALL)
    assert stored(Manifest.load(tmp_path / "kept")) == [[0, 1]]


def test_an_index_is_not_read_from_elsewhere(indexed: Manifest, tmp_path: Path):
    with pytest.raises(DataError, match=r"tokens of shard index-00000\.tar lie in .*0\.tar, which can be read from a disk"):
        Manifest.load(f"file://{indexed.root}", CacheConfig(folder=str(tmp_path / "cache")))
