"""The learning rate as a function of the step."""

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.errors import ConfigError
from llm.train.schedule import ScheduleConfig, learning_rate

rest = {"warmup": st.integers(0, 30), "final_ratio": st.floats(0, 1)}
schedules = st.one_of(
    st.builds(
        ScheduleConfig,
        kind=st.just("wsd"),
        cooldown=st.none() | st.floats(0, 0.5) | st.integers(2, 35),
        shape=st.sampled_from(["linear", "sqrt"]),
        **rest,
    ),
    st.builds(ScheduleConfig, kind=st.sampled_from(["cosine", "linear"]), **rest),
    st.builds(ScheduleConfig, kind=st.just("constant"), warmup=rest["warmup"]),
)


@given(schedule=schedules, steps=st.integers(70, 300), peak=st.floats(1e-5, 1.0))
def test_it_rises_to_the_peak_and_never_rises_again(schedule: ScheduleConfig, steps: int, peak: float) -> None:
    schedule.check("train.schedule", steps)
    rates = [learning_rate(schedule, peak, step, steps) for step in range(1, steps + 1)]
    top = max(schedule.warmup, 1) - 1
    assert rates[top] == pytest.approx(peak)
    assert all(a <= b + 1e-12 for a, b in pairwise(rates[: top + 1]))
    assert all(a >= b - 1e-12 for a, b in pairwise(rates[top:]))
    assert min(rates) > 0
    assert rates[-1] >= schedule.final_ratio * peak - 1e-12


def test_warmup_stable_cooldown() -> None:
    schedule = ScheduleConfig("wsd", warmup=4, cooldown=0.25, final_ratio=0.0)
    rates = [learning_rate(schedule, 1.0, step, 12) for step in range(1, 13)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25])


def test_square_root_cooldown_is_the_papers() -> None:
    """Hägele et al., eq. 1: 1 - sqrt((n - N_start) / N_decay), here over 4 steps that count as 5 because none has rate 0."""
    schedule = ScheduleConfig("wsd", warmup=1, cooldown=4, shape="sqrt")
    rates = [learning_rate(schedule, 2.0, step, 10) for step in range(6, 11)]
    assert rates == pytest.approx([2 * (1 - math.sqrt(k / 5)) for k in range(5)])


def test_a_line_from_warmup_to_the_end() -> None:
    schedule = ScheduleConfig("linear", warmup=2, final_ratio=0.5)
    rates = [learning_rate(schedule, 1.0, step, 6) for step in range(1, 7)]
    assert rates == pytest.approx([0.5, 1, 0.9, 0.8, 0.7, 0.6])


@given(steps=st.integers(50, 100), more=st.integers(1, 100), cooldown=st.integers(2, 20))
def test_a_stable_phase_does_not_know_its_end(steps: int, more: int, cooldown: int) -> None:
    """What makes a cooldown from any checkpoint exact: up to where it starts, rates are those of the longer run."""
    short, long = (ScheduleConfig("wsd", warmup=10, cooldown=n) for n in (cooldown, 2))
    before = range(1, steps - cooldown + 1)
    assert [learning_rate(short, 1.0, k, steps) for k in before] == [learning_rate(long, 1.0, k, steps + more + 20) for k in before]


def test_cosine_is_half_way_down_in_the_middle() -> None:
    schedule = ScheduleConfig("cosine", warmup=1, final_ratio=0.2)
    assert learning_rate(schedule, 2.0, 51, 100) == pytest.approx(1.2)
    assert learning_rate(schedule, 2.0, 26, 100) == pytest.approx(2 * (0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2))


@pytest.mark.parametrize(
    ("schedule", "law"),
    [
        (ScheduleConfig(warmup=10), "less than train.steps"),
        (ScheduleConfig(warmup=6, cooldown=0.5), "overlap"),
        (ScheduleConfig(warmup=1, cooldown=1.5), "share of all steps"),
        (ScheduleConfig(warmup=1, cooldown=-0.1), "share of all steps"),
        (ScheduleConfig("cosine", warmup=1, cooldown=0.2), "no effect on train.schedule.kind=cosine"),
        (ScheduleConfig("linear", warmup=1, shape="sqrt"), "no effect on train.schedule.kind=linear"),
        (ScheduleConfig("constant", warmup=1, final_ratio=0.1), "no effect on a constant rate"),
        (ScheduleConfig(warmup=1, final_ratio=-0.1), "final_ratio"),
    ],
)
def test_bad_settings_are_refused(schedule: ScheduleConfig, law: str) -> None:
    with pytest.raises(ConfigError, match=law):
        schedule.check("train.schedule", 10)
