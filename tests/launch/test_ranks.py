"""A rank's place comes from its launcher, from SLURM, or it is alone; contradictions stop the start."""

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch import ranks
from llm.errors import ConfigError

TORCHRUN = {
    "RANK": "5",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "8",
    "MASTER_ADDR": "n3",
    "MASTER_PORT": "29500",
    "TORCHELASTIC_RUN_ID": "none",
}


def task(procid: int, localid: int = 0, **more: str) -> dict[str, str]:
    """What `srun -N 2 -n 4` gives one task."""
    return {
        "SLURM_PROCID": str(procid),
        "SLURM_LOCALID": str(localid),
        "SLURM_NTASKS": "4",
        "SLURM_NNODES": "2",
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_ID": "0",
        "SLURM_JOB_NODELIST": "gpu[07-08]",
    } | more


@pytest.fixture(autouse=True)
def every_host_has_an_address(monkeypatch):
    monkeypatch.setattr(socket, "gethostbyname", lambda host: "10.0.0.1")


def test_a_launchers_environment_is_left_as_it_is():
    environment = dict(TORCHRUN)
    assert ranks.settle(environment) == ranks.Place(5, 1, 8, "environment")
    assert environment == TORCHRUN


def test_srun_gives_every_task_its_rank_and_one_meeting_point():
    environments = [task(procid, procid % 2) for procid in range(4)]
    places = [ranks.settle(environment) for environment in environments]
    assert [(p.rank, p.local_rank, p.world_size, p.source) for p in places] == [(r, r % 2, 4, "slurm") for r in range(4)]
    assert {(e["MASTER_ADDR"], e["MASTER_PORT"]) for e in environments} == {("gpu07", environments[0]["MASTER_PORT"])}
    assert 20000 <= int(environments[0]["MASTER_PORT"]) < 32000


@pytest.mark.parametrize("other", [{"SLURM_JOB_ID": "4712"}, {"SLURM_STEP_ID": "1"}])
def test_jobs_and_steps_on_the_same_node_meet_on_ports_of_their_own(other):
    one, two = task(0), task(0, **other)
    ranks.settle(one)
    ranks.settle(two)
    assert one["MASTER_PORT"] != two["MASTER_PORT"]


def test_plain_python_is_a_world_of_one():
    environment: dict[str, str] = {}
    assert ranks.settle(environment) == ranks.Place(0, 0, 1, "alone")
    assert environment["MASTER_ADDR"] == "127.0.0.1"
    assert int(environment["MASTER_PORT"]) > 0


@pytest.mark.parametrize("start", [{}, TORCHRUN, task(3, 1)])
def test_settling_twice_changes_nothing(start):
    environment = dict(start)
    first = ranks.settle(environment)
    settled = dict(environment)
    second = ranks.settle(environment)
    assert environment == settled
    assert (second.rank, second.local_rank, second.world_size) == (first.rank, first.local_rank, first.world_size)


def test_a_meeting_point_that_a_person_set_is_kept():
    environment = task(1, MASTER_ADDR="head", MASTER_PORT="1234")
    ranks.settle(environment)
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("head", "1234")


def test_one_node_meets_on_the_loopback():
    environment = task(1, 1, SLURM_NNODES="1", SLURM_JOB_NODELIST="gpu07")
    ranks.settle(environment)
    assert environment["MASTER_ADDR"] == "127.0.0.1"


def test_a_step_on_part_of_the_job_meets_on_its_own_first_node():
    environment = task(0, SLURM_STEP_NODELIST="gpu[08-09]")
    ranks.settle(environment)
    assert environment["MASTER_ADDR"] == "gpu08"


def test_a_task_that_sees_one_gpu_uses_device_0():
    assert ranks.settle(task(3, 3, CUDA_VISIBLE_DEVICES="0")).local_rank == 0
    assert ranks.settle(task(3, 3, CUDA_VISIBLE_DEVICES="0,1,2,3")).local_rank == 3


def test_a_batch_script_of_one_task_is_a_world_of_one():
    script = {key: value for key, value in task(0, SLURM_NTASKS="1").items() if key != "SLURM_STEP_ID"}
    assert ranks.settle(script) == ranks.Place(0, 0, 1, "alone")


def test_a_batch_script_of_several_tasks_needs_srun():
    script = {key: value for key, value in task(0).items() if key != "SLURM_STEP_ID"}
    with pytest.raises(ConfigError, match=r"SLURM_NTASKS \(4\) .* write srun before the command"):
        ranks.settle(script)


def test_slurm_counts_launchers_under_srun_torchrun_and_srun_deepspeed():
    ranks.settle(TORCHRUN | {"SLURM_PROCID": "5", "SLURM_NTASKS": "2"})
    deepspeed = {key: value for key, value in TORCHRUN.items() if key != "TORCHELASTIC_RUN_ID"} | {"CROSS_RANK": "1"}
    ranks.settle(deepspeed | {"SLURM_PROCID": "5", "SLURM_NTASKS": "2"})


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        (task(0, WORLD_SIZE="8"), r"WORLD_SIZE \(8\) must equal SLURM_NTASKS \(4\)"),
        (task(0, RANK="0", WORLD_SIZE="8", MASTER_ADDR="a", MASTER_PORT="1"), r"WORLD_SIZE \(8\) must equal SLURM_NTASKS \(4\)"),
        (task(0, SLURM_JOB_NODELIST=""), "SLURM_JOB_NODELIST is not set .* set MASTER_ADDR"),
        (task(0, SLURM_JOB_NODELIST="[["), "names no first host"),
        (task(4), r"RANK \(4\) must be below WORLD_SIZE \(4\)"),
        (task(0, SLURM_NTASKS="four"), r"SLURM_NTASKS \(four\) must be a number"),
        (task(0, SLURM_JOB_ID=""), r"SLURM_JOB_ID \(not set\)"),
        ({"RANK": "0"}, "WORLD_SIZE, MASTER_ADDR, MASTER_PORT not"),
        ({"WORLD_SIZE": "4"}, "RANK is not; unset it"),
    ],
)
def test_contradictions_stop_the_start_with_one_sentence(environment, sentence):
    with pytest.raises(ConfigError, match=sentence) as caught:
        ranks.settle(environment)
    assert "\n" not in str(caught.value)


def test_a_head_node_without_an_address_never_becomes_the_local_host(monkeypatch):
    def unknown(host):
        raise socket.gaierror("unknown name")

    monkeypatch.setattr(socket, "gethostbyname", unknown)
    environment = task(0)
    with pytest.raises(ConfigError, match=r"head node \(gpu07\) has no address"):
        ranks.settle(environment)
    assert "RANK" not in environment


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("n1", "n1"),
        ("n[07-09,12]", "n07"),
        ("n[3,5],login", "n3"),
        ("rack[0-1]node[04-07]", "rack0node04"),
        ("gpu-a[1-2].cluster.org,b", "gpu-a1.cluster.org"),
        ("b,a[1-2]", "b"),
    ],
)
def test_first_host_of_a_node_list(nodelist, host):
    assert ranks.first_host(nodelist) == host


@given(st.from_regex(r"[a-z][a-z0-9]{0,5}", fullmatch=True), st.lists(st.integers(0, 99), min_size=1, unique=True))
def test_first_host_is_the_first_of_any_list_of_numbers(prefix, numbers):
    assert ranks.first_host(f"{prefix}[{','.join(f'{n:02}' for n in numbers)}]") == f"{prefix}{numbers[0]:02}"


def test_the_launchers_local_rank_is_dropped_from_the_words():
    words = ["--local_rank=1", "exp/demo.yaml", "--local-rank", "2", "model.width=64", "--local_rank", "3"]
    assert ranks.without_local_rank(words) == ["exp/demo.yaml", "model.width=64"]
