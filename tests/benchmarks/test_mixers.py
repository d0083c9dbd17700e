"""The benchmark of the mixers: every comparison runs, and what is too slow is named."""

import pytest
import torch

from benchmarks import mixers
from benchmarks.comparisons import CORES, LAYERS, OURS
from benchmarks.mixers import TABLES, growths, held_to_floors, measure, shortfalls

CASES = [(table, name) for table, comparisons in TABLES.items() for name in comparisons]


@pytest.mark.parametrize(("table", "name"), CASES)
@pytest.mark.filterwarnings("ignore")
def test_every_side_runs(table, name, monkeypatch):
    monkeypatch.setattr("benchmarks.mixers.SECONDS", 0.0)
    seconds, ratios = measure(TABLES[table][name], 64, torch.float32, rounds=1)
    assert seconds > 0
    assert ratios.keys() == TABLES[table][name].sides(64, torch.float32).keys() - {OURS}
    assert all(ratio is not None for ratio in ratios.values()), ratios


@pytest.mark.parametrize("comparisons", [CORES, LAYERS], ids=["cores", "layers"])
@pytest.mark.filterwarnings("ignore")
def test_floors_name_sides_that_are_measured(comparisons):
    for comparison in comparisons.values():
        assert {peer for peer, _ in comparison.floors} <= comparison.sides(64, torch.float32).keys()


def row(mixer: str, tokens: int, ms: float, table: str = "layer", **others: float) -> dict:
    place = {"table": table, "mixer": mixer, "dtype": "fp32", "tokens": tokens}
    return place | {"rounds": 7, "peak": 1.0, "ms": ms, "bound": 1.0, "others": others}


def test_what_is_below_its_floor_is_named():
    rows = [row("slstm", 2048, 10.0, "core", xlstm=4.9), row("slstm", 8192, 10.0, "core", xlstm=5.1)]
    assert shortfalls(rows, 1.0) == {"core slstm fp32 T=2048: 4.900x xlstm, at least 5.00x is asked for": rows[:1]}
    assert shortfalls(rows, 0.7) == {}


def test_growth_is_measured_by_the_projections():
    """In turns with the layer: those of another minute do not count."""
    rows = [row("projections", 512, 1.0), row("projections", 2048, 100.0)]
    rows += [row("attention", 512, 20.0), row("attention", 2048, 200.0)]
    rows += [row("mamba", 512, 20.0, projections=10 / 20), row("mamba", 2048, 100.0, projections=40 / 100)]
    assert [(r["mixer"], r["growth"], r["ratio"]) for r in growths(rows)] == [("mamba", 5.0, 1.25)]
    missed = shortfalls(rows, 1.0)
    assert [*missed] == ["layer mamba fp32 512 to 2048: grows 1.250x as the projections do, at most 1.10x is allowed"]
    assert [r["tokens"] for r in missed.popitem()[1]] == [512, 2048]


@pytest.mark.parametrize(("second", "missed"), [(5.2, 0), (4.8, 1)])
def test_what_falls_short_is_measured_once_more_for_longer(second, missed, monkeypatch):
    rows = [row("slstm", 2048, 10.0, "core", xlstm=4.9), row("lstm", 2048, 10.0, "core", xlstm=9.0)]
    asked = []

    def timed(*place):
        asked.append(place)
        return row("slstm", 2048, 11.0, "core", xlstm=second)

    monkeypatch.setattr(mixers, "timed", timed)
    assert len(held_to_floors(rows, 1.0)) == missed
    assert asked == [("core", "slstm", "fp32", 2048, 14, 1.0)]
    assert [r["ms"] for r in rows] == [11.0, 10.0]
