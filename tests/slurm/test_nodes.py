"""On a real SLURM: a job leaves a node that is not fit, and a rank that is stopped is found from outside."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.nodes.bad_nodes import bad_nodes
from llm.data import Manifest
from llm.train.exits import HUNG, UNFIT
from tests.slurm.cluster import Cluster, missing, wait_until
from tests.slurm.runs import Runs, assert_same_weights
from tests.train.conftest import manifest  # noqa: F401

pytestmark = [pytest.mark.multirank, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def three() -> Iterator[Cluster]:
    """Three nodes, one more than the runs need."""
    why = missing()
    if why:
        pytest.skip(why)
    with tempfile.TemporaryDirectory(prefix="braid-slurm-", ignore_cleanup_errors=True) as folder, Cluster(Path(folder), 3) as up:
        yield up


@pytest.fixture
def spare(three: Cluster, manifest: Manifest, tmp_path: Path) -> Iterator[Runs]:  # noqa: F811
    yield Runs(three, manifest, tmp_path)
    three.clear()


@pytest.mark.skipif(os.geteuid() != 0, reason="fills a disk of one node alone, which takes root")
def test_a_node_with_a_full_disk_is_left_out(spare: Runs, whole: Path) -> None:
    temporary = spare.folder / "temporary"
    temporary.mkdir()
    daemon = spare.cluster.processes("n1")[0]
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(temporary)]
    subprocess.run(["nsenter", f"--target={daemon.pid}", "--mount", *mount], check=True)
    job = spare.submit("run", f"slurm.environment.TMPDIR={temporary}", "slurm.health.seconds=120", "slurm.health.link=0.01")
    first = spare.end_start("run", 0)
    assert (first["hosts"], first["status"], first["verdict"]) == ("n[1-2]", UNFIT, "later")
    assert f"n1: temporary folder {temporary} (0.0 GB free) must have 1 GB free" in first["sentence"]
    assert set(bad_nodes(spare.path("run"))) == {"n1"}
    wait_until(lambda: spare.cluster.job(job)["Restarts"] == "1", 60, "the job is queued again")
    spare.cluster.start_now(job)
    spare.done("run", 400)
    assert spare.starts("run")[-1]["hosts"] == "n[2-3]"
    assert "health: 2 rank(s) on 2 node(s) are fit" in spare.told("run")
    assert_same_weights(spare.path("run"), whole)


def test_a_stopped_rank_is_found_and_the_run_goes_on(spare: Runs, whole: Path) -> None:
    spare.submit("run", "slurm.silence_minutes=0.5")
    spare.reach("run", 60)
    spare.ranks("run", "n2")[0].send_signal(signal.SIGSTOP)
    hung = spare.end_start("run", 0)
    assert (hung["status"], hung["verdict"]) == (HUNG, "again")
    assert "nothing was heard of rank(s) 1 on n2 for 0.5 minutes" in hung["sentence"]
    (stacks,) = (spare.path("run") / "stacks").iterdir()
    assert "on n2 is stopped" in (stacks / "rank-1.txt").read_text()
    assert all("optimizer_step" in (stacks / f"rank-{rank}.txt").read_text() for rank in range(2))
    spare.done("run")
    assert_same_weights(spare.path("run"), whole)
