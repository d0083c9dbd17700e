"""The local copies: each shard downloaded once, no half taken for whole, never more than the bound, and every read succeeds."""

import errno
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.data import DataConfig, Manifest, TokenStream, cache
from llm.data.remote import CacheConfig
from llm.data.shard import TOKENS, OpenFiles, ShardReader
from llm.errors import DataError
from tests.checkout import ROOT, environment
from tests.data.serving import FolderServer, serving


@pytest.fixture
def server(dataset: Manifest) -> Iterator[FolderServer]:
    with serving(dataset.root) as server:
        yield server


@pytest.fixture
def config(tmp_path: Path) -> CacheConfig:
    return CacheConfig(str(tmp_path / "cache"), retries=3, timeout=10, backoff=0.001)


@pytest.fixture(scope="module")
def in_memory(dataset: Manifest) -> Iterator[str]:
    """The address of the dataset in fsspec's memory."""
    files = fsspec.filesystem("memory")
    for path in dataset.root.iterdir():
        files.pipe_file(f"/dataset/{path.name}", path.read_bytes())
    yield "memory://dataset"
    files.rm("/dataset", recursive=True)


def cached_bytes(config: CacheConfig) -> int:
    return sum(path.stat().st_size for path in config.root.rglob("*.tar*"))


def expected(dataset: Manifest) -> list[list[int]]:
    files = OpenFiles()
    return [ShardReader(dataset, shard, files).tokens(0, shard.tokens).tolist() for shard in dataset.shards]


@settings(max_examples=30, deadline=None)
@given(order=st.lists(st.integers(0, 99), min_size=1, max_size=40), shards=st.integers(1, 5), limit=st.integers(1, 4))
def test_the_bound_holds_while_every_read_succeeds(dataset, in_memory, tmp_path_factory, order, shards, limit):
    bound = shards * max(shard.bytes for shard in dataset.shards)
    config = CacheConfig(str(tmp_path_factory.mktemp("cache")), bytes=bound)
    found, files, right = Manifest.load(in_memory, config), OpenFiles(limit), expected(dataset)
    for k in (k % len(found.shards) for k in order):
        reader = ShardReader(found, found.shards[k], files)
        assert reader.tokens(0, reader.shard.tokens).tolist() == right[k]
        assert cached_bytes(config) <= bound


def test_threads_in_random_order_stay_right_and_within_the_bound(dataset: Manifest, in_memory: str, config: CacheConfig):
    largest, right = max(shard.bytes for shard in dataset.shards), expected(dataset)
    bounded = replace(config, bytes=2 * largest)
    found, files = Manifest.load(in_memory, bounded), OpenFiles(limit=3)
    readers = [ShardReader(found, shard, files) for shard in found.shards]

    def read(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(60):
            k = rng.randrange(len(readers))
            assert readers[k].tokens(0, readers[k].shard.tokens).tolist() == right[k]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(read, range(4)))
    assert largest <= cached_bytes(bounded) <= bounded.bytes
    files.close()


def test_the_least_recently_opened_gives_way(dataset: Manifest, in_memory: str, config: CacheConfig):
    a, b, c = sorted(dataset.shards, key=lambda shard: shard.bytes)[-3:]
    found = Manifest.load(in_memory, replace(config, bytes=a.bytes + b.bytes + c.bytes - 1))
    for shard in (a, b, a, c):
        found.locate(shard)
        time.sleep(0.01)
    assert {path.name for path in found.root.glob("*.tar")} == {a.path, c.path}


def test_other_files_in_the_folder_are_left_alone(dataset: Manifest, in_memory: str, config: CacheConfig):
    config.root.mkdir()
    mine = [config.root / "thesis.tar", config.root / "backup" / ".photos.tar.part"]
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(bytes(9999))
    found = Manifest.load(in_memory, replace(config, bytes=max(shard.bytes for shard in dataset.shards)))
    for shard in found.shards:
        found.locate(shard)
    assert all(path.is_file() for path in mine)
    assert len(list(found.root.glob("*.tar"))) == 1


def test_an_open_shard_that_gave_way_is_read_on_and_then_freed(dataset: Manifest, in_memory: str, config: CacheConfig, monkeypatch):
    monkeypatch.setattr("llm.data.shard.SWEEP", 0)
    a, b = (found := Manifest.load(in_memory, config)).shards[:2]
    files = OpenFiles()
    one, two = ShardReader(found, a, files), ShardReader(found, b, files)
    one.tokens(0, a.tokens)
    (found.root / a.path).unlink()
    assert one.tokens(0, a.tokens).tolist() == expected(dataset)[0]
    two.tokens(0, b.tokens)
    assert list(files._open) == [found.root / b.path]
    assert one.tokens(0, a.tokens).tolist() == expected(dataset)[0]


@pytest.mark.parametrize("member", ["tokens.bin", "doc_ends.idx", "crc.bin", "all", "end"])
def test_a_damaged_copy_is_downloaded_again(dataset: Manifest, server: FolderServer, config: CacheConfig, member: str, capsys):
    found = Manifest.load(server.url, config)
    shard = found.shards[0]
    path, content = found.locate(shard), (dataset.root / shard.path).read_bytes()
    if member in shard.members:
        at = shard.members[member].offset
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    else:
        path.write_bytes(bytes(len(content)) if member == "all" else content[: shard.members[TOKENS].offset])
    reader = ShardReader(found, shard, OpenFiles())
    assert reader.tokens(0, shard.tokens).tolist() == expected(dataset)[0]
    assert reader.doc_ends.tolist() == ShardReader(dataset, shard, OpenFiles()).doc_ends.tolist()
    assert server.faults.tries(shard.path) == 2
    assert path.read_bytes() == content
    assert f"this copy of {server.url} is deleted and downloaded again" in capsys.readouterr().err


def test_a_copy_that_is_damaged_twice_is_an_error(server: FolderServer, config: CacheConfig, monkeypatch):
    found = Manifest.load(server.url, config)
    monkeypatch.setattr("google_crc32c.value", lambda data: 0)
    with pytest.raises(DataError, match=r"shard-00000\.tar: member crc\.bin is corrupt"):
        ShardReader(found, found.shards[0], OpenFiles()).tokens(0, 1)
    assert server.faults.tries("shard-00000.tar") == 2


def test_a_full_disk_is_an_error_at_once(server: FolderServer, config: CacheConfig, monkeypatch):
    found = Manifest.load(server.url, config)

    def full(*args) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(
        DataError, match=r"data\.cache\.folder \(.*cache\) cannot take .*\(No space left on device\); free space there"
    ):
        found.locate(found.shards[0])
    assert server.faults.tries("shard-00000.tar") == 1
    assert cached_bytes(config) == 0


def test_a_cache_deleted_while_in_use_is_filled_again(dataset: Manifest, server: FolderServer, config: CacheConfig):
    found = Manifest.load(server.url, config)
    found.locate(found.shards[0])
    config.root.rename(config.root.with_name("gone"))
    assert found.locate(found.shards[0]).read_bytes() == (dataset.root / found.shards[0].path).read_bytes()


def _read_all(plans: list[tuple[str, CacheConfig]], seed: int, out: multiprocessing.SimpleQueue) -> None:
    for url, config in plans:
        found = Manifest.load(url, config)
        for shard in random.Random(seed).sample(found.shards, len(found.shards)):
            os.close(found.open(shard))
        out.put(TokenStream(found, "train", DataConfig("", 16), seed=0).rows(np.arange(100))[0].tolist())


@pytest.mark.multirank
def test_processes_share_one_download(dataset: Manifest, server: FolderServer, config: CacheConfig):
    """Without a bound each shard is asked for once; with room for two of them everything is right all the same."""
    # so long that they do meet
    server.pause = 0.02
    bounded = replace(config, folder=f"{config.folder}-bounded", bytes=2 * max(shard.bytes for shard in dataset.shards))
    spawn = multiprocessing.get_context("spawn")
    out = spawn.SimpleQueue()
    with serving(dataset.root) as other:
        plans = [(server.url, config), (other.url, bounded)]
        ranks = [spawn.Process(target=_read_all, args=(plans, k, out)) for k in range(3)]
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join(60)
            assert rank.exitcode == 0
    assert [server.faults.tries(shard.path) for shard in dataset.shards] == [1] * len(dataset.shards)
    right = TokenStream(dataset, "train", DataConfig("", 16), seed=0).rows(np.arange(100))[0].tolist()
    assert [out.get() for _ in range(6)] == [right] * 6
    assert cached_bytes(bounded) <= bounded.bytes
    for path in [*config.root.rglob("*.tar*"), *bounded.root.rglob("*.tar*")]:
        assert path.read_bytes() == (dataset.root / path.name).read_bytes()


DOWNLOAD = """
import sys
from llm.data import Manifest, remote
from llm.data.remote import CacheConfig
remote.RANGE = 1000
found = Manifest.load(sys.argv[1], CacheConfig(sys.argv[2], timeout=60))
found.locate(found.shards[0])
"""


@pytest.mark.multirank
@pytest.mark.parametrize("next_shard", [0, 1])
def test_a_download_killed_midway_is_taken_for_nothing(
    dataset: Manifest, server: FolderServer, config: CacheConfig, next_shard: int
):
    server.faults.planned["shard-00000.tar"] = ["", "stall"]
    child = subprocess.Popen([sys.executable, "-c", DOWNLOAD, server.url, config.folder], cwd=ROOT, env=environment())
    until = time.monotonic() + 30
    while server.faults.tries("shard-00000.tar") < 2 and time.monotonic() < until:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait(30)
    found = Manifest.load(server.url, config)
    (part,) = found.root.glob(".*.part")
    assert part.stat().st_size == found.shards[0].bytes
    assert not list(found.root.glob("*.tar"))
    path = found.locate(found.shards[next_shard])
    assert path.read_bytes() == (dataset.root / path.name).read_bytes()
    # the next download goes on with it or clears it away
    assert not part.exists()


def test_who_waits_for_a_download_that_fails_tries_itself(server: FolderServer, config: CacheConfig):
    found = Manifest.load(server.url, replace(config, retries=0))
    server.faults.planned["shard-00000.tar"] = ["stall"]
    results: list = []

    def locate() -> None:
        try:
            results.append(found.locate(found.shards[0]).is_file())
        except DataError as error:
            results.append(str(error))

    threads = [threading.Thread(target=locate) for _ in range(3)]
    for thread in threads:
        thread.start()
    while not server.faults.tries("shard-00000.tar"):
        time.sleep(0.01)
    server.faults.released.set()
    for thread in threads:
        thread.join(30)
    assert sum(result is True for result in results) == 2
    assert len(results) == 3
    assert server.faults.tries("shard-00000.tar") == 2


FORK = """
import os, sys, threading
from llm.data import Manifest
from llm.data.remote import CacheConfig
found = Manifest.load(sys.argv[1], CacheConfig(sys.argv[2], timeout=5, retries=0))
found.locate(found.shards[0])
child = os.fork()
thread = threading.Thread(target=found.locate, args=(found.shards[1 if child else 2],))
thread.start()
thread.join()
found.locate(found.shards[3 if child else 4])
if not child:
    os._exit(0)
sys.exit(os.waitpid(child, 0)[1])
"""


@pytest.mark.multirank
def test_forked_readers_download_too(dataset: Manifest, server: FolderServer, config: CacheConfig):
    done = subprocess.run([sys.executable, "-c", FORK, server.url, config.folder], cwd=ROOT, env=environment(), timeout=60)
    assert done.returncode == 0
    assert sorted(path.name for path in config.root.rglob("*.tar")) == [shard.path for shard in dataset.shards[:5]]


def test_downloads_side_by_side_leave_the_bound_kept(server: FolderServer, config: CacheConfig):
    largest = max(shard.bytes for shard in Manifest.load(server.url, config).shards)
    found = Manifest.load(server.url, replace(config, bytes=largest))
    server.faults.planned["shard-00000.tar"] = ["stall"]
    slow = threading.Thread(target=found.locate, args=(found.shards[0],))
    slow.start()
    while not server.faults.tries("shard-00000.tar"):
        time.sleep(0.01)
    found.locate(found.shards[1])
    server.faults.released.set()
    slow.join(30)
    assert [path.name for path in found.root.glob("*.tar")] == ["shard-00000.tar"]


def test_a_shard_that_comes_between_the_look_and_the_claim_is_taken(server: FolderServer, config: CacheConfig, monkeypatch):
    found = Manifest.load(server.url, config)
    found.locate(found.shards[0])
    misses, opened = [True], cache._opened
    monkeypatch.setattr(cache, "_opened", lambda path: None if misses and misses.pop() else opened(path))
    found.locate(found.shards[0])
    assert server.faults.tries("shard-00000.tar") == 1
    assert not list(found.root.glob(".*"))
