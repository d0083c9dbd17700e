"""Shards and manifests: other tools open them, and no damage passes unseen."""

import errno
import json
import random
import shutil
import tarfile
from pathlib import Path
from unittest.mock import Mock

import google_crc32c
import numpy as np
import pytest
import webdataset

from data_prep.verify import verify
from llm.data import DataConfig, Manifest, TokenStream, documents
from llm.data.manifest import Source
from llm.data.shard import BLOCK, OpenFiles, ShardReader
from llm.data.write import DatasetWriter
from llm.errors import DataError


def read_everything(folder: Path) -> None:
    manifest = Manifest.load(folder)
    for split in ("train", "validation"):
        for _ in documents(manifest, split):
            pass


def flip(path: Path, at: int, bits: int = 0x10) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= bits
    path.write_bytes(content)


# webdataset leaves its files to the garbage collector
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_webdataset_opens_the_shards(dataset: Manifest):
    for shard in dataset.shards:
        (sample,) = webdataset.WebDataset(str(dataset.root / shard.path), shardshuffle=False)
        tokens, ends = np.frombuffer(sample["tokens.bin"], "<u2"), np.frombuffer(sample["doc_ends.idx"], "<u8")
        meta = json.loads(sample["json"])
        assert (len(tokens), len(ends), ends[-1]) == (shard.tokens, shard.documents, shard.tokens)
        assert np.frombuffer(sample["text_ends.idx"], "<u8")[-1] == shard.text_bytes
        assert (meta["tokenizer"], meta["tokens"], meta["source"]) == (dataset.tokenizer.sha256, shard.tokens, shard.source)
        crc = [google_crc32c.value(sample["tokens.bin"][k : k + BLOCK]) for k in range(0, len(sample["tokens.bin"]), BLOCK)]
        assert np.frombuffer(sample["crc.bin"], "<u4").tolist() == crc


def test_every_document_opens_with_the_document_token(dataset: Manifest):
    verify(dataset)
    for document in documents(dataset, "train"):
        assert np.flatnonzero(document.tokens == dataset.tokenizer.document_token).tolist() == [0]


def test_totals_are_what_the_documents_add_up_to(dataset: Manifest):
    for split in ("train", "validation"):
        found, total = list(documents(dataset, split)), dataset.totals(split)
        assert total.documents == len(found)
        assert total.tokens == sum(len(document.tokens) for document in found)
        assert total.text_bytes == sum(document.text_bytes for document in found)


def test_the_same_documents_give_the_same_bytes(make_dataset, dataset: Manifest, tmp_path: Path):
    again = make_dataset(tmp_path / "again")
    assert again.hash == dataset.hash
    # plans may have come to the one that other tests read
    for path in again.root.iterdir():
        assert path.read_bytes() == (dataset.root / path.name).read_bytes()
    with tarfile.open(dataset.root / dataset.shards[0].path) as tar:
        assert {(info.mtime, info.uid, info.gid, info.uname, info.mode) for info in tar} == {(0, 0, 0, "", 0o444)}


def test_shards_stay_within_their_bound(make_dataset, tmp_path: Path):
    for shard in make_dataset(tmp_path / "d", shard_tokens=60).shards:
        assert shard.tokens <= 60 or shard.documents == 1


def test_ids_beyond_65536_are_stored_in_four_bytes(tokenizer_json: bytes, tmp_path: Path):
    content = json.loads(tokenizer_json)
    content["model"]["vocab"] |= {f"filler{k}": k for k in range(len(content["model"]["vocab"]), 70_001)}
    writer = DatasetWriter(tmp_path / "d", json.dumps(content).encode(), {"s": Source(1.0, "x")})
    writer.add("s", "train", [5, 69_999], 9)
    manifest = writer.finish()
    assert (manifest.dtype, manifest.tokenizer.vocabulary) == ("uint32", 70_001)
    assert next(documents(Manifest.load(tmp_path / "d"), "train")).tokens.tolist() == [0, 5, 69_999]


def test_a_dataset_is_not_written_over(copy_of_dataset: Manifest, tokenizer_json: bytes):
    with pytest.raises(DataError, match="holds a dataset already"):
        DatasetWriter(copy_of_dataset.root, tokenizer_json, {})


def test_a_truncated_shard_is_named(copy_of_dataset: Manifest):
    path = copy_of_dataset.root / copy_of_dataset.shards[1].path
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(DataError, match=r"shard-00001\.tar has \d+ bytes where the manifest says"):
        Manifest.load(copy_of_dataset.root)


def test_a_shard_truncated_while_training_is_named(copy_of_dataset: Manifest):
    stream = TokenStream(copy_of_dataset, "train", DataConfig("", 16), seed=0)
    for shard in copy_of_dataset.shards:
        path = copy_of_dataset.root / shard.path
        path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DataError, match=r"shard-\d+\.tar ends within byte \d+"):
        stream.rows(np.arange(50))


def test_a_shard_lost_while_training_is_named(copy_of_dataset: Manifest):
    stream = TokenStream(copy_of_dataset, "train", DataConfig("", 16), seed=0)
    for shard in copy_of_dataset.shards:
        (copy_of_dataset.root / shard.path).unlink()
    with pytest.raises(DataError, match=r"shard .*shard-\d+\.tar cannot be read \(No such file"):
        stream.rows(np.arange(50))


def test_a_missing_shard_is_named(copy_of_dataset: Manifest):
    (copy_of_dataset.root / copy_of_dataset.shards[2].path).unlink()
    with pytest.raises(DataError, match=r"shard-00002\.tar is missing; copy it again"):
        Manifest.load(copy_of_dataset.root)


def test_a_flipped_token_names_shard_and_block(tokenizer_json: bytes, tmp_path: Path):
    writer = DatasetWriter(tmp_path, tokenizer_json, {"s": Source(1.0, "x")})
    writer.add("s", "train", [7] * 100_000, 1)
    manifest = writer.finish()
    member = manifest.shards[0].members["tokens.bin"]
    flip(tmp_path / "shard-00000.tar", member.offset + 2 * BLOCK + 5)
    reader = ShardReader(manifest, manifest.shards[0], OpenFiles())
    assert reader.tokens(BLOCK // 2, BLOCK).tolist() == [7] * (BLOCK // 2)
    with pytest.raises(DataError, match=r"shard-00000\.tar: block 2 of the tokens \(document 0\) is corrupt"):
        reader.tokens(BLOCK - 1, BLOCK + 1)


@pytest.mark.parametrize("member", ["tokens.bin", "doc_ends.idx", "text_ends.idx", "crc.bin"])
def test_a_flip_in_any_member_is_found_by_reading(copy_of_dataset: Manifest, member: str):
    rng, shard = random.Random(0), copy_of_dataset.shards[0]
    path, where = copy_of_dataset.root / shard.path, shard.members[member]
    whole = path.read_bytes()
    for _ in range(25):
        flip(path, where.offset + rng.randrange(where.bytes))
        with pytest.raises(DataError, match=r"shard-00000\.tar.*corrupt"):
            read_everything(copy_of_dataset.root)
        path.write_bytes(whole)
    read_everything(copy_of_dataset.root)


def test_a_flip_anywhere_in_a_shard_is_found_by_verify(copy_of_dataset: Manifest):
    rng, path = random.Random(0), copy_of_dataset.root / copy_of_dataset.shards[0].path
    whole = path.read_bytes()
    for _ in range(100):
        flip(path, rng.randrange(len(whole)))
        with pytest.raises(DataError, match=r"shard-00000\.tar"):
            verify(copy_of_dataset)
        path.write_bytes(whole)


def test_a_flip_or_cut_anywhere_in_the_manifest_is_found(copy_of_dataset: Manifest):
    rng, path = random.Random(0), copy_of_dataset.root / "manifest.json"
    whole = path.read_bytes()
    for k in range(300):
        if k % 3:
            flip(path, rng.randrange(len(whole)), bits=rng.randrange(1, 256))
        else:
            path.write_bytes(whole[: rng.randrange(len(whole))])
        with pytest.raises(DataError, match=r"manifest\.json"):
            Manifest.load(copy_of_dataset.root)
        path.write_bytes(whole)


def test_a_manifest_edited_by_hand_is_refused(copy_of_dataset: Manifest):
    path = copy_of_dataset.root / "manifest.json"
    path.write_text(path.read_text().replace('"weight": 0.7', '"weight": 0.9'))
    with pytest.raises(DataError, match="does not match its own hash: it was edited or damaged"):
        Manifest.load(path)


def test_a_manifest_laid_out_otherwise_is_refused(copy_of_dataset: Manifest):
    """Not even a changed blank passes: the file is what was written, or it is not."""
    path = copy_of_dataset.root / "manifest.json"
    path.write_text(path.read_text().replace("\n ", "\n\t", 1))
    with pytest.raises(DataError, match="does not match its own hash"):
        Manifest.load(path)


def test_a_manifest_of_another_version_is_refused(copy_of_dataset: Manifest):
    path = copy_of_dataset.root / "manifest.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(DataError, match="has version 2, this release reads version 1"):
        Manifest.load(path)


def test_a_manifest_that_is_not_there_says_how_to_make_one(tmp_path: Path):
    with pytest.raises(DataError, match="does not exist; prepare the dataset with `braid-data prepare"):
        Manifest.load(tmp_path / "none")


def test_a_dataset_that_the_system_refuses_is_named(copy_of_dataset: Manifest, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(DataError, match=r"dataset x+ cannot be read \(x+: File name too long\)"):
        Manifest.load("x" * 300)
    refused = PermissionError(errno.EACCES, "Permission denied", "tokenizer.json")
    monkeypatch.setattr(Manifest, "_check_tokenizer", Mock(side_effect=refused))
    with pytest.raises(DataError, match=r"cannot be read \(tokenizer\.json: Permission denied\)"):
        Manifest.load(copy_of_dataset.root)


def test_another_tokenizer_is_refused(copy_of_dataset: Manifest):
    path = copy_of_dataset.tokenizer_path
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(DataError, match=r"tokenizer\.json \(sha256 \w+\) is not the tokenizer of these shards"):
        Manifest.load(copy_of_dataset.root)
    path.unlink()
    with pytest.raises(DataError, match=r"tokenizer\.json is missing"):
        Manifest.load(copy_of_dataset.root)


def test_a_dataset_may_be_moved(copy_of_dataset: Manifest, tmp_path: Path):
    moved = shutil.move(copy_of_dataset.root, tmp_path / "elsewhere")
    assert Manifest.load(moved).hash == copy_of_dataset.hash
    read_everything(Path(moved))


def test_few_open_files_are_enough(dataset: Manifest):
    files = OpenFiles(limit=2)
    readers = [ShardReader(dataset, shard, files) for shard in dataset.shards]
    for _ in range(2):
        for reader in readers:
            reader.tokens(0, reader.shard.tokens)
            assert len(files._open) <= 2
