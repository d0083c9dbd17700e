"""The tests' own cluster behaves like one."""

import pytest

from tests.slurm.cluster import Cluster, wait_until

pytestmark = [pytest.mark.multirank, pytest.mark.timeout(120)]


def test_two_nodes_run_a_task_each(cluster: Cluster):
    told = cluster.run(
        "srun", "-N2", "-n2", "--gpus-per-node=1", "bash", "-c", "echo $(hostname) $SLURM_PROCID $CUDA_VISIBLE_DEVICES"
    )
    assert sorted(told.splitlines()) == ["n1 0 0", "n2 1 0"]


@pytest.mark.slow
def test_a_node_that_dies_comes_back_idle(cluster: Cluster):
    cluster.kill_node("n2")
    assert cluster.processes("n2") == []
    wait_until(lambda: cluster.states()["n2"].startswith("down"), 60, "n2 is down")
    cluster.start_node("n2")
    wait_until(lambda: cluster.states() == {"n1": "idle", "n2": "idle"}, 60, "n2 is idle")
