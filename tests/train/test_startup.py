"""A start is told by phase, and a rank that was slow by name."""

import json
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from llm.train.config import RunConfig, TrainConfig
from llm.train.guard import PATIENCE
from llm.train.start import patience
from llm.train.startup import StartUp
from llm.train.world import World, first_of_node


class TwoRanks(World):
    """The second of which took much longer to import."""

    def gather(self, value: Any) -> list[Any]:
        seconds, _ = value
        return [value, (seconds | {"imports": seconds["imports"] + 6000}, "gpu12")]


def test_phases_add_up_to_the_time_since_the_process_began(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    startup = StartUp()
    startup.done("imports")
    time.sleep(0.05)
    startup.done("manifest")
    startup.done("imports")
    time.sleep(0.05)
    startup.first_step(0.02, tmp_path, TwoRanks(0, 2, torch.device("cpu")))
    startup.first_step(0.0, tmp_path, TwoRanks(0, 2, torch.device("cpu")))
    assert set(startup.seconds) == {"imports", "manifest", "kernels", "first step"}
    assert sum(startup.seconds.values()) == pytest.approx(time.time() - psutil.Process().create_time(), abs=0.5)
    assert startup.seconds["manifest"] == pytest.approx(0.05, abs=0.04)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("start-up: imports ")
    assert first.endswith(f"{sum(startup.seconds.values()):.1f} s in all")
    assert second == f"start-up: imports took rank 1 on gpu12 {startup.seconds['imports'] + 6000:.1f} s"
    line = json.loads((tmp_path / "start-up.jsonl").read_text())
    assert line["slowest"]["imports"]["host"] == "gpu12"


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "1"}, False),
        # a GPU of its own for each task
        ({"LOCAL_RANK": "0", "SLURM_LOCALID": "3"}, False),
        # srun torchrun
        ({"LOCAL_RANK": "3", "SLURM_LOCALID": "0"}, False),
    ],
)
def test_one_rank_of_a_node_is_its_first(environment: dict[str, str], first: bool) -> None:
    assert first_of_node(environment) is first


@pytest.mark.parametrize("minutes", [0.0, 1.0, 15.0, 90.0])
def test_a_collective_may_take_longer_than_any_phase(minutes: float) -> None:
    """So a hang is told, with stacks, by the guard, before NCCL ends the rank."""
    train = TrainConfig(hang_minutes=minutes)
    longest = PATIENCE * minutes + (train.evaluate.minutes if minutes else 0)
    assert patience(RunConfig(train=train)) > longest
