"""Envelope, parabolas, cautions, comparisons and ladders on laws that are known."""

import re
from dataclasses import replace

import numpy as np
import pytest
from omegaconf import OmegaConf

from benchmarks.scaling import CHINCHILLA, chinchilla_runs, grid_design, isoflop_design, runs_of
from eval.scaling import cautions
from eval.scaling.compare import at_equal_cost, in_hours
from eval.scaling.cost_law import CostLaw
from eval.scaling.envelope import envelope
from eval.scaling.fit import FitConfig, fit
from eval.scaling.forms import FORMS
from eval.scaling.intervals import bootstrap
from eval.scaling.isoflop import budgets, isoflop
from eval.scaling.ladder import LadderConfig, ladder, write_ladder
from eval.scaling.power_law import line_through
from llm.errors import ConfigError
from llm.train.config import load_config

FORM = FORMS["chinchilla"]
SIX = CostLaw()
# beta / (alpha + beta)
EXPONENT = 0.28 / 0.62
FEW = FitConfig(starts=40)


def law_runs(design, noise=0.0, seed=0, theta=CHINCHILLA):
    return runs_of(FORM, theta, design, noise, seed)


def narrow_design(around: float = 1.0, wide: float = 2.0):
    """Nine budgets of seven sizes, from 1 / wide to `wide` times the optimal size, shifted by `around`."""
    N, D = [], []
    for C in np.geomspace(1e18, 1e22, 9):
        best = np.exp(FORM.optimum(CHINCHILLA[None], np.log(C), SIX)[0][0])
        sizes = best * around * np.geomspace(1 / wide, wide, 7)
        N.append(sizes)
        D.append(C / 6 / sizes)
    return np.concatenate(N), np.concatenate(D)


def envelope_of(runs, noise: float, resamples: int, seed: int):
    """With the law itself where a study has its fit."""
    return envelope(runs, SIX, FORM.curve(CHINCHILLA[None], runs.points)[0][0], noise, resamples, seed)


def test_parabolas_find_the_exponent_where_sizes_are_near_the_optimum():
    found = isoflop(law_runs(narrow_design()), SIX, 20, 0)
    assert found.line[1] == pytest.approx(EXPONENT, abs=1e-3)
    best = FORM.optimum(CHINCHILLA[None], np.log(1e23), SIX)
    assert found.N_opt(1e23, 0.95).value == pytest.approx(np.exp(best[0][0]), rel=0.02)
    assert found.D_opt(1e23, 0.95).value == pytest.approx(np.exp(best[1][0]), rel=0.02)
    assert found.D_exponent(0.95).value == pytest.approx(1 - EXPONENT, abs=1e-3)


def test_the_envelope_finds_the_exponent_of_a_dense_grid():
    found = envelope_of(law_runs(grid_design(25, 25)), 0.0, 3, 0)
    assert found.line[1] == pytest.approx(EXPONENT, abs=0.01)


@pytest.mark.parametrize("approach", ["envelope", "isoflop"])
def test_intervals_hold_the_truth(approach):
    """95 % intervals of 20 draws hold it 16 times or more in all but 1 of 300 tries."""
    held = 0
    for seed in range(20):
        if approach == "isoflop":
            found = isoflop(law_runs(narrow_design(), 0.002, seed), SIX, 100, seed)
        else:
            found = envelope_of(law_runs(grid_design(), 0.003, seed), 0.003, 100, seed)
        held += found.N_exponent(0.95).holds(EXPONENT)
    assert held >= 16


def test_an_optimum_outside_of_its_sizes_is_left_out_and_told():
    low = narrow_design(around=0.2)
    mixed = tuple(np.concatenate([values[:21], good[21:]]) for values, good in zip(low, narrow_design(), strict=True))
    found = isoflop(law_runs(mixed), SIX, 5, 0)
    assert len(found.log_N) == 6
    assert sum("is outside of its sizes" in said for said in found.cautions) == 3
    assert "fewer than 2 optima" in isoflop(law_runs(low), SIX, 5, 0)
    assert "needs at least 2 computes" in isoflop(law_runs(narrow_design())[:7], SIX, 5, 0)
    assert "needs at least 3 sizes" in envelope_of(law_runs(isoflop_design())[:7], 0.0, 5, 0)


def test_a_vertex_weighs_by_its_variance():
    """The deviation is that of vertices under noise drawn again and again; a vague point does not move the line."""
    runs, rng = law_runs(narrow_design()), np.random.default_rng(0)
    budget = budgets(runs)[0]
    drawn = [float(budget.vertex(np.log(runs.loss) + 1e-4 * rng.standard_normal(len(runs)))[0]) for _ in range(500)]
    assert budget.deviation(budget.vertex(np.log(runs.loss))[1], 1e-4) == pytest.approx(np.std(drawn), rel=0.1)
    x, y = np.arange(5.0), np.array([0, 1, 2, 3, 9.0])
    assert line_through(x, y, np.array([1, 1, 1, 1, 1e3]))[1] == pytest.approx(1, abs=1e-4)
    assert line_through(x, y, np.ones(5))[1] == pytest.approx(np.polyfit(x, y, 1)[0])


def test_duplicates_are_named_with_what_they_swing():
    """Half a percent, at the edges of four budgets, moves the exponent by more than 0.02."""
    runs = law_runs(narrow_design(), 0.0005)[np.arange(28)]
    edges = np.array([0, 27])
    again = replace(runs[edges], loss=runs.loss[edges] * 0.995, line=np.array(["again 0", "again 27"]))
    (said,) = cautions.duplicates(join(runs, again))
    assert said.startswith("2 sizes were run several times with the same tokens (row 0, again 0; row 27, again 27)")
    low, high = (float(word) for word in re.findall(r"0\.\d+", said))
    assert high - low > 0.02
    assert said.endswith("average them, or settle which count")
    assert cautions.duplicates(runs) == []


def test_designs_and_costs_that_mislead_are_told():
    one_ratio = (np.geomspace(1e7, 1e10, 12), 20 * np.geomspace(1e7, 1e10, 12))
    assert any("same tokens per parameter" in said for said in cautions.of_runs(law_runs(one_ratio)))
    runs = law_runs(isoflop_design())
    assert cautions.of_runs(runs) == []
    assert any("up to 4 times" in said for said in cautions.of_runs(replace(runs, unique=runs.tokens / 4)))
    crooked = replace(runs, flops=runs.flops * np.where(np.arange(len(runs)) % 2, 1.3, 1.0), has_flops=True)
    assert any("FLOPs deviate" in said for said in cautions.of_runs(crooked))
    found = fit(FORM, runs, FEW)
    assert cautions.of_target(found, 1e22) == []
    (far,) = cautions.of_target(found, 1e23)
    assert "100 times the largest run" in far
    few_tokens = fit(FORM, law_runs(narrow_design(around=12)), FEW)
    assert any("lies outside of the" in said for said in cautions.of_target(few_tokens, 1e22))
    small = fit(FORM, law_runs(narrow_design(around=0.1)), FEW)
    assert any("the optimal size at" in said for said in cautions.of_target(small, 1e22))


def join(*parts):
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in parts[0].__dataclass_fields__
        if name != "has_flops"
    }
    return replace(parts[0], **columns)


def family(name: str, theta, seed: int, hours_per_flop: float, noise: float = 0.002):
    runs = law_runs(isoflop_design(), noise, seed, theta)
    runs = replace(runs, family=np.full(len(runs), name), hours=runs.flops * hours_per_flop)
    return fit(FORM, runs, FEW)


def vectors(*fits):
    return tuple(bootstrap(each, 100, k) for k, each in enumerate(fits))


def test_the_better_family_is_told_with_what_it_saves():
    """Half the compute for every loss: A and B scaled so that L2(C) = L1(C / 2)."""
    slow = CHINCHILLA + np.array([0.34 * EXPONENT, 0.28 * (1 - EXPONENT), 0, 0, 0]) * np.log(2)
    first, second = family("fast", CHINCHILLA, 1, 1e-17), family("slow", slow, 2, 2e-18)
    found = at_equal_cost(first, second, vectors(first, second), 1e21, "FLOPs", 0.95)
    assert found.difference.low > 0
    assert found.times.holds(2)
    assert found.times.value == pytest.approx(2, rel=0.1)
    assert found.verdict.startswith("at 1e+21 FLOPs: fast is better than slow by 0.0")
    # five times the FLOPs in an hour: the slow learner is ahead at equal hours
    clocks = in_hours(first), in_hours(second)
    hours = at_equal_cost(*clocks, vectors(first, second), 2000, "hours", 0.95)
    assert hours.difference.high < 0
    assert hours.times.value == pytest.approx(2 / 5, rel=0.1)
    assert "slow is better than fast" in hours.verdict
    assert "accelerator-hours" in hours.verdict


def test_families_that_are_one_are_not_told_apart():
    """At 95 %, 1 or none of 5 pairs of the same law are told apart in all but 1 of 44 tries."""
    told = 0
    for seed in range(5):
        pair = family("a", CHINCHILLA, 2 * seed, 1e-17), family("b", CHINCHILLA, 2 * seed + 1, 1e-17)
        found = at_equal_cost(*pair, vectors(*pair), 1e21, "FLOPs", 0.95)
        told += "no difference between a and b can be told" not in found.verdict
        assert found.times.holds(found.times.value)
    assert told <= 1


def test_a_comparison_beyond_the_runs_says_so():
    pair = family("a", CHINCHILLA, 0, 1e-17), family("b", CHINCHILLA, 1, 1e-17)
    assert "(100 times the largest run of both)" in at_equal_cost(*pair, vectors(*pair), 1e23, "FLOPs", 0.95).verdict


def test_a_ladder_spends_its_budget_around_the_optimum(tmp_path):
    found = fit(FORM, chinchilla_runs(), FEW)
    config = LadderConfig(budget=1e21, sizes=4, step=2.0, ratios=[0.5, 1.0, 3.0])
    rungs = ladder(found, config)
    assert len(rungs) == 12
    assert sum(rung.flops for rung in rungs) == pytest.approx(1e21)
    assert [rung.flops for rung in rungs[1::3]] == pytest.approx([rungs[1].flops * 2**k for k in range(4)])
    N, D = (np.exp(log[0]) for log in FORM.optimum(found.theta[None], np.log(rungs[1].flops), SIX))
    assert (rungs[1].params, rungs[1].tokens) == pytest.approx((N, D))
    assert [rung.tokens / rungs[1].tokens for rung in rungs[:3]] == pytest.approx([0.5, 1, 3])
    write_ladder(rungs, config, tmp_path / "plan.yaml")
    written = OmegaConf.to_container(OmegaConf.load(tmp_path / "plan.yaml"))
    assert [run["params"] for run in written["runs"]] == [rung.params for rung in rungs]


def test_a_ladder_of_experiments_is_words_for_training():
    found = fit(FORM, chinchilla_runs(), FEW)
    rungs = ladder(found, LadderConfig(budget=1e19, experiments=["configs/exp/tiny.yaml"]))
    configs = [load_config(list(rung.words)) for rung in rungs]
    assert [config.name for config in configs] == [rung.name for rung in rungs]
    tokens = [config.train.steps * config.train.batch * config.data.sequence_length for config in configs]
    assert tokens == pytest.approx([rung.tokens for rung in rungs])
    # the optimal tokens of a size: what brings it to the optimum of its compute
    flops = found.law.log_cost(np.log(rungs[1].params), np.log(rungs[1].tokens))
    assert np.exp(FORM.optimum(found.theta[None], float(flops), SIX)[0][0]) == pytest.approx(rungs[1].params, rel=1e-3)
    with pytest.raises(ConfigError, match=r"has no room for the runs of configs/exp/tiny\.yaml"):
        ladder(found, LadderConfig(budget=1e6, experiments=["configs/exp/tiny.yaml"]))
