"""A sweep's runs: every combination of the grid, points, a plan; and what is refused."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.sweeps.config import Point, SweepConfig, points_of
from launch.sweeps.folder import Sweep
from llm.config import load
from llm.errors import ConfigError
from llm.train.config import load_config

SWEEPS = Path(__file__).resolve().parents[2] / "configs" / "sweeps"
VALUES = st.lists(st.integers(0, 99) | st.booleans() | st.sampled_from([1e-3, 0.25]), min_size=1, max_size=4, unique_by=str)


@given(st.dictionaries(st.sampled_from(["seed", "train.optimizer.lr", "model.width"]), VALUES, min_size=1))
def test_a_grid_is_every_combination_once(grid: dict):
    points = points_of(SweepConfig("s", grid=grid))
    count = 1
    for values in grid.values():
        count *= len(values)
    assert len({point.name for point in points}) == len({tuple(point.words) for point in points}) == count
    assert all({word.partition("=")[0] for word in point.words} == set(grid) for point in points)


def test_words_are_as_the_command_line_has_them():
    grid = {"files": ["configs/model/a.yaml"], "train.clip": [None], "model.tie": [True], "model.pattern": [["m", "a"]]}
    assert points_of(SweepConfig("s", grid=grid)) == [
        Point(
            "a-clipnull-tietrue-pattern_m_a", ["configs/model/a.yaml", "train.clip=null", "model.tie=true", "model.pattern=[m,a]"]
        )
    ]


def test_a_plan_of_a_scaling_study_is_a_sweep(tmp_path: Path):
    (tmp_path / "plan.yaml").write_text("runs:\n- {name: a-1.2B, params: 3.0, words: [a.yaml, name=a-1.2B, train.steps=9]}\n")
    config = SweepConfig("s", plan=str(tmp_path / "plan.yaml"))
    assert points_of(config) == [Point("a-1.2B", ["a.yaml", "train.steps=9"])]


@pytest.mark.parametrize("file", sorted(SWEEPS.glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_sweeps_are_runs(file: Path):
    sweep = Sweep.of(load(SweepConfig, [str(file)], {}))
    for point in sweep.points:
        load_config(sweep.words(point)).model.check("model")


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (SweepConfig("s"), "sweep s has no runs; give grid, points or plan"),
        (SweepConfig("a/b", grid={"seed": [1]}), "names the sweep's folder"),
        (SweepConfig("s", grid={"seed": 1}), r"grid.seed \(1\) must list values"),
        (SweepConfig("s", words=["name=x"], grid={"seed": [1]}), r"words \(name=x\) is for the sweep to say"),
        (SweepConfig("s", grid={"seed": [1]}, throttle=-1), r"throttle \(-1\) must not be negative"),
        (SweepConfig("s", points=[{"name": "a", "words": ["b=1"]}] * 2), "two runs called a"),
        (SweepConfig("s", points=[{"name": "a"}]), "must be runs with a name and words"),
        (SweepConfig("s", plan="nowhere.yaml"), r"plan \(nowhere.yaml\) does not exist"),
    ],
)
def test_what_is_no_sweep_is_refused(config: SweepConfig, sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        Sweep.of(config)


def test_a_sweep_takes_further_runs_and_changes_none(tmp_path: Path):
    def sweep(*seeds: int, words: list[str]) -> Sweep:
        return Sweep.of(SweepConfig("s", str(tmp_path), words, {"seed": list(seeds)}))

    sweep(3, 1, words=["a.yaml"]).write()
    more = sweep(0, 1, words=["a.yaml"])
    assert [point.name for point in more.points] == ["seed3", "seed1", "seed0"]
    with pytest.raises(ConfigError, match="holds a sweep with other words"):
        sweep(3, words=["b.yaml"])
    changed = SweepConfig("s", str(tmp_path), ["a.yaml"], points=[{"name": "seed3", "words": ["seed=4"]}])
    with pytest.raises(ConfigError, match="seed3 is a run with other words"):
        Sweep.of(changed)
