"""The cluster that the tests of this folder share."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, missing


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes, idle; their queue is empty again after each test that leaves it so."""
    why = missing()
    if why:
        pytest.skip(why)
    # a short path: sockets' may have 108 characters
    with tempfile.TemporaryDirectory(prefix="braid-slurm-", ignore_cleanup_errors=True) as folder, Cluster(Path(folder)) as running:
        yield running
