"""Cooldowns from any checkpoint: branching off, or going on with another end, equals having planned that end from the start."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from llm.testing import run_ranks
from llm.train.branch import starting_point
from llm.train.load import load_model
from llm.train.start import plan
from llm.train.world import World
from tests.train.test_resume import records, start

pytestmark = [pytest.mark.multirank, pytest.mark.timeout(200)]
Words = Callable[..., list[str]]


def values(run: Path) -> list[dict[str, float]]:
    """A run's records without validations, which come where a start ends."""
    return [{key: value for key, value in record.items() if "validation" not in key} for record in records(run)]


def starts(rank: int, words: list[str], runs: Path) -> list[str]:
    long = [*words, "train.checkpoint_every=6", "train.keep_last=3", "train.optimizer.kind=muon", "train.optimizer.lr=0.01"]
    end = ["train.steps=16", "train.schedule.cooldown=4"]
    # another kind starts from its own defaults
    constant, wsd = ([f"train.schedule.kind={kind}", "train.schedule.warmup=4"] for kind in ("constant", "wsd"))
    point = runs / "long" / "checkpoints" / "step-12"
    return [
        start([*long, "name=planned", *end]),
        start([*long, "name=long", "train.steps=12", *constant]),
        start([*long, "name=branch", f"branch_from={point}", *end]),
        start([*long, "name=other", f"branch_from={point}", "data.sequence_length=16"]),
        start([*long, "name=none", f"branch_from={runs / 'nowhere'}"]),
        start([str(runs / "long"), *wsd, *end]),
        start([str(runs / "long"), "train.steps=8"]),
        twice([*long, "name=late", f"branch_from={runs / 'long'}", *end, "train.steps=20"], runs),
    ]


def twice(words: list[str], runs: Path) -> str:
    """A branch from a run, killed before its first checkpoint, and the run goes on meanwhile: where the second start begins."""
    config, folder = plan([*words, "train.precision=fp32"])
    folder.path.mkdir()
    world = World.from_environment()
    first, _ = starting_point(config, folder, world)
    assert first is not None
    shutil.copytree(first, first.with_name("step-90"))
    second, _ = starting_point(config, folder, world)
    shutil.rmtree(first.with_name("step-90"))
    return f"{first == second} {first.name}"


def test_a_cooldown_from_a_checkpoint_equals_one_that_was_planned(
    words: Words, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    runs = tmp_path / "runs"
    planned, stable, branch, other, none, longer, shorter, late = run_ranks(starts, 1, words(), runs, timeout=150)[0]
    assert (planned, stable, branch, longer) == ("step 16", "step 12", "step 16", "step 16")
    assert "data.sequence_length: 32 -> 16" in other
    assert "a branch may change train.steps and train.schedule alone" in other
    assert none.startswith("CheckpointError")
    assert late == "True step-16"
    assert "train.steps (8) must be at least 16" in shorter
    assert "train.schedule.kind: 'constant' -> 'wsd'" in capfd.readouterr().out
    whole, long, branched = (values(runs / name) for name in ("planned", "long", "branch"))
    assert [record["lr"] for record in whole][-5:] == pytest.approx([0.01, 0.008, 0.006, 0.004, 0.002])
    assert long == whole
    assert branched == whole[12:]
    (a, _, info), *rest = (load_model(runs / name) for name in ("planned", "branch", "long"))
    assert info.step == 16
    for b, _, other_info in rest:
        assert other_info.step == 16
        assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    classes = {each["role"]: each for each in json.loads((runs / "planned" / "report" / "parameters.json").read_text())}
    assert sum(each["parameters"] for each in classes.values()) == sum(p.numel() for p in a.parameters())
    assert {role for role, each in classes.items() if each["optimizer"] == "muon"} == {"matrix", "output matrix"}
    assert {role: each["weight_decay"] for role, each in classes.items()}["embedding"] == 0
    # N(0, 1 / fan-in) of widths 32 and 88, N(0, 0.02), and ones
    assert classes["matrix"]["init_std"] == pytest.approx(32**-0.5, rel=0.02)
    assert classes["embedding"]["init_std"] == pytest.approx(0.02, rel=0.02)
    assert (classes["norm"]["init_mean"], classes["norm"]["init_std"]) == (1, 0)
