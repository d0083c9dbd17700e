"""Converters: foreign files written by hand, by their documented layouts, become the same documents; odd files are refused."""

import argparse
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.convert import ConvertConfig, Datatrove, Megatron, NanoGPT, command, convert, files, nanogpt
from data_prep.verify import verify
from llm.data import Manifest, documents
from llm.errors import BraidError, DataError
from tests.data import tokenizers_of_all_kinds as kinds

Documents = list[list[int]]
ids = st.integers(1, 299)
some_documents = st.lists(st.lists(ids, max_size=9), max_size=9)
DOCUMENTS = [[5, 6, 7], [8], [], [299, 1, 2, 3, 4], [5, 6, 7], list(range(1, 200))]


def write_nanogpt(folder: Path, contents: Documents, mark: int = 0, at_end: bool = True, dtype: str = "H") -> Path:
    stream = [id for ids in contents for id in ([*ids, mark] if at_end else [mark, *ids])]
    (folder / "train.bin").write_bytes(struct.pack(f"<{len(stream)}{dtype}", *stream))
    return folder / "train.bin"


def write_llm_c(path: Path, stream: list[int], wide: bool = False) -> Path:
    header = [20240801, 7, len(stream)] if wide else [20240520, 1, len(stream)]
    path.write_bytes(struct.pack("<256i", *header, *[0] * 253) + struct.pack(f"<{len(stream)}{'I' if wide else 'H'}", *stream))
    return path


def write_megatron(folder: Path, contents: list[Documents], mark: int | None = None, code: int = 8, format: str = "H") -> Path:
    """contents: sequences by document; the mark ends the last sequence of each."""
    marked = [[*map(list, sequences)] for sequences in contents]
    for sequences in marked:
        if mark is not None and sequences:
            sequences[-1] = [*sequences[-1], mark]
    flat = [sequence for sequences in marked for sequence in sequences]
    width = struct.calcsize(f"<{format}")
    starts, first = [0], [0]
    for sequence in flat:
        starts.append(starts[-1] + len(sequence) * width)
    for sequences in contents:
        first.append(first[-1] + len(sequences))
    (folder / "text_document.bin").write_bytes(b"".join(struct.pack(f"<{len(s)}{format}", *s) for s in flat))
    index = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(flat), len(first))
    index += struct.pack(f"<{len(flat)}i", *map(len, flat)) + struct.pack(f"<{len(flat)}q", *starts[:-1])
    (folder / "text_document.idx").write_bytes(index + struct.pack(f"<{len(first)}q", *first))
    return folder / "text_document"


def write_datatrove(folder: Path, contents: Documents, mark: int | None = 0, format: str = "H", metadata: bool = True) -> Path:
    marked = [ids if mark is None else [*ids, mark] for ids in contents]
    stream = [id for ids in marked for id in ids]
    (folder / "x.ds").write_bytes(struct.pack(f"<{len(stream)}{format}", *stream))
    ends = np.cumsum([len(ids) for ids in marked]).tolist() if marked else []
    (folder / "x.ds.index").write_bytes(struct.pack(f"<{len(ends)}Q", *ends))
    if metadata:
        (folder / "x.ds.metadata").write_text(f"gpt2|{struct.calcsize(format)}\n{len(stream)}\n1.2 T")
    return folder / "x.ds"


def converted(reader, tokenizer_json: bytes, out: Path, **settings) -> Documents:
    """The ids of the dataset's documents, in order, after verify()."""
    convert(reader, tokenizer_json, out, ConvertConfig(**{"validation": 0.0} | settings))
    manifest = Manifest.load(out)
    verify(manifest)
    return [document.tokens[1:].tolist() for document in documents(manifest, "train")]


def readers(folder: Path) -> dict:
    return {
        "nanogpt": NanoGPT((write_nanogpt(folder, DOCUMENTS),), 0),
        "megatron": Megatron((write_megatron(folder, [[ids] for ids in DOCUMENTS], mark=0),)),
        "datatrove": Datatrove((write_datatrove(folder, DOCUMENTS),)),
    }


@pytest.mark.parametrize("kind", ["nanogpt", "megatron", "datatrove"])
def test_documents_are_those_of_the_files(kind: str, tokenizer_json: bytes, tmp_path: Path):
    assert converted(readers(tmp_path)[kind], tokenizer_json, tmp_path / "out", shard_tokens=150) == [d for d in DOCUMENTS if d]
    card = (tmp_path / "out" / "CARD.md").read_text()
    assert "- documents empty: 1" in card
    assert "- documents kept: 5" in card
    assert len(Manifest.load(tmp_path / "out").shards) == 2


@settings(deadline=None)
@given(contents=some_documents, at_end=st.booleans(), wide=st.booleans(), step=st.integers(1, 5))
def test_nanogpt(tmp_path_factory, contents: Documents, at_end: bool, wide: bool, step: int):
    folder = tmp_path_factory.mktemp("f")
    file = write_nanogpt(folder, contents, 0, at_end, "I" if wide else "H")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nanogpt, "STEP", step)
        found = [ids.tolist() for _, ids in NanoGPT((file,), 0, "uint32" if wide else "uint16").documents()]
    assert [ids for ids in found if ids] == [ids for ids in contents if ids]
    # an empty document at the open end of the stream is nothing
    assert len(found) in (len(contents), len(contents) - 1)


@settings(deadline=None)
@given(contents=st.lists(st.lists(ids, min_size=1), min_size=1), cuts=st.lists(st.integers(0, 60)), wide=st.booleans())
def test_llm_c_files_cut_anywhere_are_one_stream(tmp_path_factory, contents: Documents, cuts: list[int], wide: bool):
    folder = tmp_path_factory.mktemp("f")
    stream = [id for ids in contents for id in (0, *ids)]
    parts = np.split(np.array(stream), sorted(min(cut, len(stream)) for cut in cuts))
    paths = tuple(write_llm_c(folder / f"{k}.bin", part.tolist(), wide) for k, part in enumerate(parts))
    assert [ids.tolist() for _, ids in NanoGPT(paths, 0).documents()] == contents


@settings(deadline=None)
@given(contents=st.lists(st.lists(st.lists(ids, max_size=6), max_size=3), max_size=6), wide=st.booleans())
def test_megatron(tmp_path_factory, contents: list[Documents], wide: bool):
    file = write_megatron(tmp_path_factory.mktemp("f"), contents, None, *((4, "i") if wide else (8, "H")))
    expected = [[id for sequence in sequences for id in sequence] for sequences in contents]
    for name in (file, file.with_suffix(".bin"), file.with_suffix(".idx")):
        assert [ids.tolist() for _, ids in Megatron((name,)).documents()] == expected


@settings(deadline=None)
@given(contents=some_documents, wide=st.booleans(), metadata=st.booleans())
def test_datatrove(tmp_path_factory, contents: Documents, wide: bool, metadata: bool):
    file = write_datatrove(tmp_path_factory.mktemp("f"), contents, None, "I" if wide else "H", metadata)
    assert [ids.tolist() for _, ids in Datatrove((file,)).documents()] == contents


def test_bytes_of_text_are_those_of_the_text(tmp_path: Path):
    for name, content in {
        "ours": kinds.translatable()["ours"],
        "sentencepiece": kinds.untranslatable()["sentencepiece"][0],
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        tokenizer = kinds.loaded(content)
        if tokenizer.token_to_id("<|endoftext|>") is None:
            tokenizer.add_special_tokens(["<|endoftext|>"])
        mark = tokenizer.token_to_id("<|endoftext|>")
        contents = [tokenizer.encode(text, add_special_tokens=False).ids for text in ("the quick brown fox", "日本語 text", "é")]
        texts = [tokenizer.decode(ids, skip_special_tokens=False) for ids in contents]
        reader = NanoGPT((write_nanogpt(folder, contents, mark),), mark)
        assert converted(reader, tokenizer.to_str().encode(), folder / "out") == contents
        found = [document.text_bytes for document in documents(Manifest.load(folder / "out"), "train")]
        assert found == [len(text.encode()) for text in texts]


def test_the_share_held_out_follows_the_ids_alone(tokenizer_json: bytes, tmp_path: Path):
    contents = [[1 + k % 299, 1 + k // 299] for k in range(400)]
    sides = {}
    for name, order in {"forth": contents, "back": contents[::-1] * 2}.items():
        (tmp_path / name).mkdir()
        reader = NanoGPT((write_nanogpt(tmp_path / name, order),), 0)
        convert(reader, tokenizer_json, tmp_path / name / "out", ConvertConfig(validation=0.25))
        manifest = Manifest.load(tmp_path / name / "out")
        sides[name] = {tuple(document.tokens[1:]) for document in documents(manifest, "validation")}
    assert sides["forth"] == sides["back"]
    # 400 coins: four standard deviations
    assert abs(len(sides["forth"]) - 100) < 35


def test_a_mark_inside_is_refused_or_cut(tokenizer_json: bytes, tmp_path: Path):
    reader = Datatrove((write_datatrove(tmp_path, [[1, 2], [3, 0, 0, 4, 5, 0, 6]]),))
    with pytest.raises(DataError, match=r"x\.ds, document 1: id 0 at 1 marks a boundary inside of a document; add --inside split"):
        converted(reader, tokenizer_json, tmp_path / "out")
    assert converted(reader, tokenizer_json, tmp_path / "out", inside="split") == [[1, 2], [3], [4, 5], [6]]
    assert "- documents cut at a document token inside: 1" in (tmp_path / "out" / "CARD.md").read_text()


def test_another_mark_becomes_the_document_token(tokenizer_json: bytes, tmp_path: Path):
    reader = Datatrove((write_datatrove(tmp_path, [[1, 2], [3, 4]], mark=7),))
    assert converted(reader, tokenizer_json, tmp_path / "kept") == [[1, 2, 7], [3, 4, 7]]
    assert converted(reader, tokenizer_json, tmp_path / "out", mark=7) == [[1, 2], [3, 4]]


def test_ids_of_another_tokenizer_are_refused(tokenizer_json: bytes, tmp_path: Path):
    reader = NanoGPT((write_nanogpt(tmp_path, [[1, 2], [3, 50256]]),), 0)
    with pytest.raises(DataError, match=r"train\.bin at 3: id 50256 is not the tokenizer's, whose ids are below 300"):
        converted(reader, tokenizer_json, tmp_path / "out")
    signed = Megatron((write_megatron(tmp_path, [[[1, -2]]], None, 4, "i"),))
    with pytest.raises(DataError, match="id -2 is not the tokenizer's"):
        converted(signed, tokenizer_json, tmp_path / "out")


DAMAGE = {
    "an odd byte": ("nanogpt", "train.bin", lambda b: b + b"x", "must hold whole uint16; it is truncated"),
    "bin cut": ("megatron", "text_document.bin", lambda b: b[:-2], r"has \d+ bytes where its \.idx says"),
    "bin too long": ("megatron", "text_document.bin", lambda b: b + b"xx", r"has \d+ bytes where its \.idx says"),
    "idx cut": ("megatron", "text_document.idx", lambda b: b[:-8], r"bytes where \d+ sequences and \d+ documents take"),
    "idx of a header's half": ("megatron", "text_document.idx", lambda b: b[:20], "ends before byte 34"),
    "other magic": ("megatron", "text_document.idx", lambda b: b"X" + b[1:], "is no index of ids"),
    "other version": ("megatron", "text_document.idx", lambda b: b[:9] + b"\x02" + b[10:], "is no index of ids"),
    "floats": ("megatron", "text_document.idx", lambda b: b[:17] + b"\x06" + b[18:], "is no index of ids"),
    "documents back": ("megatron", "text_document.idx", lambda b: b[:-16] + b"\x00" * 8 + b[-8:], "contradicts itself"),
    "a negative length": (
        "megatron",
        "text_document.idx",
        lambda b: b[:34] + struct.pack("<2i", -1, 5) + b[42:],
        "contradicts itself",
    ),
    "an offset outside": ("megatron", "text_document.idx", lambda b: b[:58] + b"\xff\xff\xff\x7f" + b[62:], "contradicts itself"),
    "ds cut": ("datatrove", "x.ds", lambda b: b[:-1], "bytes where its index says"),
    "ends back": ("datatrove", "x.ds.index", lambda b: b"\xff" + b[1:], "ends of documents must not go back"),
    "index cut": ("datatrove", "x.ds.index", lambda b: b[:-3], "must hold whole uint64"),
    "an end lost": ("datatrove", "x.ds.index", lambda b: b[:-8], "bytes where its index says"),
    "other count": ("datatrove", "x.ds.metadata", lambda b: b.replace(b"\n2", b"\n9"), "says .* where the index says"),
    "no index": ("datatrove", "x.ds.index", None, r"cannot be read \(No such file"),
    "no bin": ("megatron", "text_document.bin", None, r"cannot be read \(No such file"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_files_are_refused(damage: str, tokenizer_json: bytes, tmp_path: Path):
    kind, name, change, message = DAMAGE[damage]
    reader = readers(tmp_path)[kind]
    if change is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(change((tmp_path / name).read_bytes()))
    with pytest.raises(DataError, match=message):
        converted(reader, tokenizer_json, tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_other_files_that_cannot_be_converted(tokenizer_json: bytes, tmp_path: Path):
    short = write_llm_c(tmp_path / "c.bin", [1, 2, 3])
    short.write_bytes(short.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"c\.bin has 2 ids where its header says 3"):
        converted(NanoGPT((short,), 0), tokenizer_json, tmp_path / "out")
    with pytest.raises(DataError, match=r"hold no document \(2 empty ones\)"):
        converted(Datatrove((write_datatrove(tmp_path, [[], []]),)), tokenizer_json, tmp_path / "out")
    masked = write_datatrove(tmp_path, DOCUMENTS)
    (tmp_path / "x.ds.loss").write_bytes(b"\x01")
    with pytest.raises(DataError, match=r"x\.ds\.loss masks some ids out of the loss"):
        converted(Datatrove((masked,)), tokenizer_json, tmp_path / "out")


def test_files_are_mapped_and_not_read_whole(tmp_path: Path):
    file = write_nanogpt(tmp_path, DOCUMENTS)
    assert isinstance(files.mapped(file, "<u2"), np.memmap)
    assert files.mapped(file, "<u2", file.stat().st_size).tolist() == []


def run(*words: str) -> None:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    arguments = parser.parse_args(["convert", *words])
    arguments.run(arguments)


def test_the_command(tokenizer_json: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.chdir(tmp_path)
    Path("t.json").write_bytes(tokenizer_json)
    write_datatrove(tmp_path, [[1, 2], [3]], mark=7)
    run(
        "datatrove", "x.ds", "--tokenizer", "t.json", "--out", "a", "--document-token", "7", "--licence", "MIT", "--validation", "0"
    )
    assert "documents kept: 2" in capsys.readouterr().out
    manifest = Manifest.load("a")
    assert [d.tokens.tolist() for d in documents(manifest, "train")] == [[0, 1, 2], [0, 3]]
    assert manifest.sources["converted"].licence == "MIT"
    write_nanogpt(tmp_path, [[1, 2]])
    run("nanogpt", "train.bin", "--tokenizer", "t.json", "--out", "b", "--validation", "0")
    assert Manifest.load("b").totals("train").documents == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nanogpt", "gone.bin"], r"gone\.bin cannot be read \(No such file"),
        (["nanogpt", "train.bin", "--document-token", "<|none|>"], r"--document-token \(<\|none\|>\) must be a token of t\.json"),
        (["nanogpt", "train.bin", "--document-token", "300"], "document token 300 must be an id of the tokenizer, below 300"),
        (["datatrove", "x.ds", "--dtype", "uint32"], r"--dtype \(uint32\) is for nanogpt"),
        (["nanogpt", "train.bin", "--validation", "1"], r"validation \(1\.0\) is the share"),
        (["nanogpt", "train.bin", "--shard-tokens", "0"], r"shard_tokens \(0\) must be positive"),
        (["megatron", "."], r"\.\.idx cannot be read"),
        (["datatrove", "/"], r"/\.index cannot be read"),
        (["nanogpt", "train.bin", "--out", "full"], r"out \(full\) holds other files \(x\.txt\)"),
        (["nanogpt", "train.bin", "--out", "t.json/out"], r"out \(t\.json/out\) cannot be made: .*t\.json is a file"),
        (["nanogpt", "train.bin", "--out", "made"], r"out \(made\) holds a dataset already"),
    ],
)
def test_bad_words_end_in_a_sentence(
    words: list[str], message: str, tokenizer_json: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    Path("t.json").write_bytes(tokenizer_json)
    write_nanogpt(tmp_path, DOCUMENTS)
    write_datatrove(tmp_path, DOCUMENTS)
    for folder, name in (("full", "x.txt"), ("made", "manifest.json")):
        Path(folder).mkdir()
        (Path(folder) / name).write_text(json.dumps({}))
    with pytest.raises(BraidError, match=message):
        run(words[0], words[1], "--tokenizer", "t.json", "--out", "out", *words[2:])
