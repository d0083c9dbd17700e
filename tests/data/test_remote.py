"""Datasets behind an HTTP server that fails: the stream is the local one, byte for byte, or a sentence says why not."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llm.data import DataConfig, Manifest, TokenStream, remote
from llm.data.manifest import _hash, _render
from llm.data.remote import CacheConfig
from llm.errors import ConfigError, DataError
from tests.data.serving import FAULTS, FolderServer, serving


@pytest.fixture
def server(dataset: Manifest) -> Iterator[FolderServer]:
    with serving(dataset.root) as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> CacheConfig:
    return CacheConfig(str(tmp_path / "cache"), retries=3, timeout=0.3, backoff=0.001)


def rows(manifest: Manifest) -> list:
    return [part.tolist() for part in TokenStream(manifest, "train", DataConfig("", 16), seed=0).rows(np.arange(200))]


def download_all(manifest: Manifest) -> None:
    for shard in manifest.shards:
        assert manifest.locate(shard).stat().st_size == shard.bytes


@pytest.mark.parametrize("ranges", [True, False])
def test_the_stream_is_that_of_the_local_dataset(dataset: Manifest, cache: CacheConfig, ranges: bool, monkeypatch):
    monkeypatch.setattr(remote, "RANGE", 700)
    with serving(dataset.root, ranges) as server:
        found = Manifest.load(server.url, cache)
        assert not [name for name, _ in server.faults.asked if name.endswith(".tar")]
        assert (found, found.hash, found.remote.url) == (dataset, dataset.hash, server.url)
        assert found.tokenizer_path.read_bytes() == dataset.tokenizer_path.read_bytes()
        assert rows(found) == rows(dataset)
        download_all(found)
        for shard in dataset.shards:
            assert found.locate(shard).read_bytes() == (dataset.root / shard.path).read_bytes()
            assert server.faults.tries(shard.path) == (-(-shard.bytes // 700) if ranges else 1)


@pytest.mark.parametrize("address", ["{}", "{}/", "{}/manifest.json"])
def test_an_address_is_the_folder_or_its_manifest(server: FolderServer, cache: CacheConfig, address: str):
    assert Manifest.load(address.format(server.url), cache).remote.url == server.url


def test_a_cached_dataset_is_not_downloaded_again_and_is_a_dataset(dataset: Manifest, server: FolderServer, cache: CacheConfig):
    download_all(Manifest.load(server.url, cache))
    download_all(again := Manifest.load(server.url, cache))
    assert {shard.path: server.faults.tries(shard.path) for shard in again.shards} == dict.fromkeys(
        (shard.path for shard in again.shards), 1
    )
    assert server.faults.tries("tokenizer.json") == 1
    assert rows(Manifest.load(again.root)) == rows(dataset)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.json", "shard-00000.tar"])
def test_what_passes_is_tried_again(dataset: Manifest, server: FolderServer, cache: CacheConfig, fault: str, name: str):
    server.faults.planned[name] = [fault, fault]
    found = Manifest.load(server.url, cache)
    download_all(found)
    assert server.faults.tries(name) == 3
    assert rows(found) == rows(dataset)


def test_a_plan_beside_the_manifest_is_fetched_and_else_made(make_dataset, cache: CacheConfig, tmp_path: Path, capsys):
    def packed(manifest: Manifest) -> list:
        stream = TokenStream(manifest, "train", DataConfig("", 16, "bestfit"), seed=0)
        return [part.tolist() for part in stream.rows(np.arange(50))]

    local = make_dataset(tmp_path / "d")
    with serving(local.root) as server:
        made = packed(Manifest.load(server.url, cache))
        assert f"{server.url} has no train.bestfit-16.plan: every shard is read" in capsys.readouterr().err
    assert packed(local) == made
    with serving(local.root) as server:
        elsewhere = Manifest.load(server.url, replace(cache, folder=cache.folder + "2"))
        assert packed(elsewhere) == made
        assert capsys.readouterr().err == ""
        assert server.faults.tries("train.bestfit-16.plan") == 1


@pytest.mark.parametrize("fault", ["503", "drop", "stall", "truncate"])
def test_a_broken_download_goes_on_where_it_broke(server: FolderServer, cache: CacheConfig, fault: str, monkeypatch):
    found = Manifest.load(server.url, cache)
    shard = found.shards[0]
    monkeypatch.setattr(remote, "RANGE", -(-shard.bytes // 4))
    server.faults.planned[shard.path] = ["", "", *[fault] * cache.retries, ""]
    found.locate(shard)
    starts = [int(asked[6:].split("-")[0]) // remote.RANGE for name, asked in server.faults.asked if name == shard.path]
    assert starts == [0, 1, *[2] * (cache.retries + 1), 3]


@pytest.mark.parametrize(
    ("fault", "tries", "told"),
    [
        ("503", 4, r"cannot be read \(4 tries, the last: ClientResponseError: 503.*raise data\.cache\.retries \(3\)"),
        ("drop", 4, r"cannot be read \(4 tries, the last: ClientPayloadError"),
        ("stall", 4, r"cannot be read \(4 tries, the last: no answer within 0\.3 s"),
        ("truncate", 4, r"cannot be read \(4 tries, the last: OSError: \d+ bytes of the \d+ from byte 0"),
        ("wrong", 3, r"arrives wrong \(3 tries, the last: sha256 \w+, the manifest says \w+\); upload the dataset again"),
        ("404", 1, "does not exist; correct the address, or upload the dataset whole"),
        ("403", 1, "is refused .*403.*; check the credentials"),
        ("416", 1, "cannot be read .*416.*; correct the address"),
    ],
)
def test_what_does_not_pass_is_an_error(server: FolderServer, cache: CacheConfig, fault: str, tries: int, told: str):
    found = Manifest.load(server.url, cache)
    server.faults.planned["shard-00001.tar"] = [fault] * 9
    with pytest.raises(DataError, match=rf"http://127\.0\.0\.1:\d+/dataset/shard-00001\.tar {told}"):
        found.locate(found.shards[1])
    assert server.faults.tries("shard-00001.tar") == tries
    assert not list(found.root.glob("*.tar")) + list(found.root.glob(".*"))


def test_a_manifest_that_stays_damaged_says_what_is_wrong(server: FolderServer, cache: CacheConfig):
    server.faults.planned["manifest.json"] = ["wrong"] * 9
    with pytest.raises(DataError, match=r"dataset/manifest\.json arrives wrong \(3 tries, the last: manifest http.* its own hash"):
        Manifest.load(server.url, cache)


def test_retries_say_so_in_few_lines(server: FolderServer, cache: CacheConfig, capsys, monkeypatch):
    monkeypatch.setattr(remote, "_said", [-remote.QUIET])
    server.faults.planned["manifest.json"] = ["503"] * 3
    Manifest.load(server.url, cache)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{server.url}/manifest.json: ClientResponseError: 503")


def test_a_changed_dataset_is_seen_and_kept_apart(make_dataset, tmp_path: Path, cache: CacheConfig):
    before = make_dataset(tmp_path / "before")
    after = make_dataset(tmp_path / "after", vocabulary=200)
    assert before.shards[0].path == after.shards[0].path
    with serving(before.root) as server:
        first = Manifest.load(server.url, cache)
        assert rows(first) == rows(before)
        server.folder = after.root
        second = Manifest.load(server.url, cache)
        assert rows(second) == rows(after) != rows(before)
        assert rows(first) == rows(before)


def test_the_last_manifest_serves_when_its_server_cannot_be_reached(dataset: Manifest, cache: CacheConfig, capsys):
    with serving(dataset.root) as server:
        download_all(Manifest.load(server.url, cache))
    offline = Manifest.load(server.url, cache)
    assert "cannot be read (4 tries" in (said := capsys.readouterr().err)
    assert "going on with the copy of the last time" in said
    assert rows(offline) == rows(dataset)
    with pytest.raises(DataError, match=r"elsewhere/manifest\.json cannot be read"):
        Manifest.load(server.url + "/elsewhere", cache)


def test_a_manifest_taken_away_is_not_replaced_by_a_copy(server: FolderServer, cache: CacheConfig):
    Manifest.load(server.url, cache)
    server.faults.planned["manifest.json"] = ["404"]
    with pytest.raises(DataError, match=r"manifest\.json does not exist"):
        Manifest.load(server.url, cache)


@pytest.mark.parametrize("path", ["../shard.tar", "/etc/shard.tar", "a/../../b.tar", "tokenizer.json"])
def test_nothing_is_written_outside_of_the_cache(copy_of_dataset: Manifest, cache: CacheConfig, path: str):
    file = copy_of_dataset.root / "manifest.json"
    content = json.loads(file.read_bytes())
    del content["hash"]
    content["shards"][0]["path"] = path
    file.write_bytes(_render({"hash": _hash(content), **content}))
    with serving(copy_of_dataset.root) as server, pytest.raises(DataError, match=r"is no \.tar below it; prepare"):
        Manifest.load(server.url, cache)


def test_a_missing_package_is_named(cache: CacheConfig, monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(DataError, match=r"gs://b/d/manifest\.json needs the package gcsfs; pip install 'braid-lm\[remote\]'"):
        Manifest.load("gs://b/d", cache)
    with pytest.raises(DataError, match=r"nowhere://d/manifest\.json cannot be read .*nowhere.*; correct the address"):
        Manifest.load("nowhere://d", cache)


def test_settings_that_cannot_be(server: FolderServer, dataset: Manifest, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"data\.cache\.bytes \(0\) and timeout"):
        CacheConfig(bytes=0)
    largest = max(shard.bytes for shard in dataset.shards)
    with pytest.raises(ConfigError, match=rf"data\.cache\.bytes \(5\) must hold the largest shard of .*; use {largest:,} or more"):
        Manifest.load(server.url, CacheConfig(str(tmp_path), bytes=5))
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"data\.cache\.folder \(.*file\) cannot take .*\(Not a directory\)"):
        Manifest.load(server.url, CacheConfig(str(tmp_path / "file")))


def test_the_folder_follows_the_environment(monkeypatch):
    monkeypatch.setenv("BRAID_CACHE", "/disk/cache")
    assert CacheConfig().root == Path("/disk/cache")
    assert CacheConfig("/given").root == Path("/given")
    monkeypatch.delenv("BRAID_CACHE")
    assert CacheConfig().root == Path.home() / ".cache" / "braid"
