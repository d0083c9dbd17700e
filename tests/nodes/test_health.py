"""`braid-health` on processes that pass for nodes: one has another version of a library, one never answers."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.nodes.bad_nodes import bad_nodes
from launch.nodes.report import read_reports
from llm.testing import free_port
from llm.train.exits import DONE, MEND, UNFIT
from tests.checkout import ROOT, environment

pytestmark = [pytest.mark.multirank, pytest.mark.timeout(120)]
# As `srun` does: a task on each of four nodes, of which n1 has a fault and n3 is dead.
START = """
import os, subprocess, sys
tasks = []
for rank in range(3):
    place = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": sys.argv[1]}
    other = {"PYTHONPATH": sys.argv[2]} if rank == 1 else {}
    tasks.append(subprocess.Popen(sys.argv[3:], env=os.environ | place | other | {"SLURMD_NODENAME": f"n{rank}"}))
for task in tasks:
    task.wait()
"""


def health(run: Path, *words: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "launch" / "health.py"), str(run), *words]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=90, check=False)


@pytest.mark.slow
def test_a_node_unlike_the_others_and_a_silent_one_are_left_out(tmp_path: Path):
    other = tmp_path / "other" / "omegaconf-9.9.dist-info"
    other.mkdir(parents=True)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: omegaconf\nVersion: 9.9\n")
    start = [sys.executable, "-c", START, str(free_port()), str(other.parent)]
    began = time.monotonic()
    done = health(
        tmp_path / "run", "--run-gb=0.01", "--tmp-gb=0.01", "--link=0.01", "--seconds=50", "--hosts=n0,n1,n2,n3", "--", *start
    )
    assert done.returncode == UNFIT, done.stderr
    assert time.monotonic() - began < 60
    assert "n1: omegaconf (9.9) must be that of 2 other node(s), such as n0" in done.stderr
    assert "n3 did not answer within 50 s" in done.stderr
    assert set(bad_nodes(tmp_path / "run")) == {"n1", "n3"}
    assert [link.gbytes is not None for report in read_reports(tmp_path / "run") for link in report.links] == [True] * 6


@pytest.mark.slow
def test_this_machine_is_fit_and_a_full_disk_is_no_nodes_fault(tmp_path: Path):
    done = health(tmp_path, "--run-gb=0.01", "--tmp-gb=0.01", "--ranks=2")
    assert done.returncode == DONE, done.stderr
    assert "2 rank(s) on 1 node(s) are fit, links" in done.stdout
    done = health(tmp_path, "--run-gb=1e9", "--tmp-gb=0.01")
    assert done.returncode == MEND
    assert "free) must have 1e+09 GB free; make room" in done.stderr
    assert bad_nodes(tmp_path) == {}
