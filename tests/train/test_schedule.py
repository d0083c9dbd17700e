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
    st.builds(ScheduleConfig, kind=st.just("wsd"), cooldown=st.none() | st.floats(0, 0.5), **rest),
    st.builds(ScheduleConfig, kind=st.just("cosine"), **rest),
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
        (ScheduleConfig("cosine", warmup=1, cooldown=0.2), "no effect on a cosine"),
        (ScheduleConfig(warmup=1, final_ratio=-0.1), "final_ratio"),
    ],
)
def test_bad_settings_are_refused(schedule: ScheduleConfig, law: str) -> None:
    with pytest.raises(ConfigError, match=law):
        schedule.check("train.schedule", 10)
