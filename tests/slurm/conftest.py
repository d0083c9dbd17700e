"""The cluster that the tests of this folder share, and runs on it."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm.data import Manifest
from tests.slurm.cluster import Cluster, missing
from tests.slurm.runs import Runs, undisturbed
from tests.train.conftest import manifest  # noqa: F401


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes, idle."""
    why = missing()
    if why:
        pytest.skip(why)
    # a short path: sockets' may have 108 characters
    with tempfile.TemporaryDirectory(prefix="braid-slurm-", ignore_cleanup_errors=True) as folder, Cluster(Path(folder)) as running:
        yield running


@pytest.fixture
def runs(cluster: Cluster, manifest: Manifest, tmp_path: Path) -> Iterator[Runs]:  # noqa: F811
    """Nothing of them is left in the queue."""
    yield Runs(cluster, manifest, tmp_path)
    cluster.clear()


@pytest.fixture(scope="session")
def whole(cluster: Cluster, manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """The run folder of an undisturbed run on two ranks."""
    folder = tmp_path_factory.mktemp("whole")
    return undisturbed(folder, Runs(cluster, manifest, folder).words, 2)
