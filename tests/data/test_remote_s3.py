"""A dataset in an S3 bucket (moto's server) that fails."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import s3fs
from moto.server import ThreadedMotoServer

from llm.data import DataConfig, Manifest, TokenStream
from llm.data.remote import CacheConfig
from llm.errors import DataError
from tests.data.serving import Faults, faulty


@pytest.fixture(scope="module")
def bucket(dataset: Manifest) -> Iterator[Faults]:
    """The dataset at s3://bucket/data; its faults."""
    server, faults = ThreadedMotoServer("127.0.0.1", 0, verbose=False), Faults()
    server.start()
    server._server.app = faulty(server._server.app, faults)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        # one request per try, so that ours can be counted
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        patch.setattr(s3fs.S3FileSystem, "retries", 1)
        files = s3fs.S3FileSystem()
        files.mkdir("bucket")
        files.put(str(dataset.root), "bucket/data", recursive=True)
        yield faults
    faults.released.set()
    server.stop()


@pytest.fixture
def cache(tmp_path: Path) -> CacheConfig:
    return CacheConfig(str(tmp_path / "cache"), retries=2, timeout=0.5, backoff=0.001)


def rows(manifest: Manifest) -> list:
    return [part.tolist() for part in TokenStream(manifest, "train", DataConfig("", 16), seed=0).rows(np.arange(200))]


@pytest.mark.parametrize("fault", ["", "503", "drop", "stall", "truncate", "wrong"])
def test_the_stream_is_that_of_the_local_dataset(dataset: Manifest, bucket: Faults, cache: CacheConfig, fault: str):
    before = bucket.tries("shard-00000.tar")
    bucket.planned["shard-00000.tar"] = [fault]
    found = Manifest.load("s3://bucket/data", cache)
    for shard in dataset.shards:
        assert found.locate(shard).read_bytes() == (dataset.root / shard.path).read_bytes()
    assert bucket.tries("shard-00000.tar") - before == 1 + bool(fault)
    assert rows(found) == rows(dataset)


@pytest.mark.parametrize(
    ("fault", "tries", "told"),
    [
        ("503", 3, r"cannot be read \(3 tries"),
        ("drop", 3, r"cannot be read \(3 tries"),
        # found by the client where the object carries a checksum and is asked for whole
        ("wrong", 3, r"(cannot be read|arrives wrong) \(3 tries, the last: .*(checksum|sha256)"),
        ("403", 1, "is refused"),
        ("404", 1, "does not exist"),
    ],
)
def test_what_does_not_pass_is_an_error(bucket: Faults, cache: CacheConfig, fault: str, tries: int, told: str):
    found, before = Manifest.load("s3://bucket/data", cache), bucket.tries("shard-00001.tar")
    bucket.planned["shard-00001.tar"] = [fault] * tries
    with pytest.raises(DataError, match=rf"s3://bucket/data/shard-00001\.tar {told}"):
        found.locate(found.shards[1])
    assert bucket.tries("shard-00001.tar") - before == tries


def test_a_bucket_that_is_not_there(bucket: Faults, cache: CacheConfig):
    with pytest.raises(DataError, match=r"s3://none/data/manifest\.json does not exist"):
        Manifest.load("s3://none/data", cache)
