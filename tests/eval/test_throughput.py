"""Throughput: the right counts over the right times; states as large as the config says."""

import copy
import mmap
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from eval import throughput
from eval.models.braid import BraidModel
from eval.throughput import ThroughputConfig
from llm.errors import ConfigError


class Clocked:
    """A model that takes 2 ms to read and 1 ms to write, and keeps 3 bytes per token."""

    vocab_size, device, positions, packs = 7, torch.device("cpu"), 4096, True

    def __init__(self):
        self.now = 0.0

    def logits(self, tokens_BT, state=None, starts_BT=None, last_only=False):
        self.now += 0.002 if state is None else 0.001
        return torch.zeros(len(tokens_BT), 1, 7), [*(state or []), tokens_BT]

    def state_bytes(self, state):
        return 3 * sum(x.numel() for x in state)

    def predicted_state_bytes(self, context):
        return 3 * context


def test_rates_are_tokens_over_time(monkeypatch):
    model = Clocked()
    monkeypatch.setattr(time, "perf_counter", lambda: model.now)
    found = throughput.at_length(model, 50, ThroughputConfig(batch=4, decode=8, repeats=3))
    assert found["prefill"]["median"] == pytest.approx(4 * 50 / 0.002)
    assert found["first_token"]["median"] == pytest.approx(2)
    assert found["decode"]["median"] == pytest.approx(4 * 8 / 0.008)
    assert found["state_bytes"] == found["predicted_state_bytes"] == 150


def test_the_median_and_quartiles_leave_the_first_run_out(monkeypatch):
    clock = iter(np.cumsum([0, 9.0, 0, 1.0, 0, 5.0, 0, 2.0, 0, 3.0, 0, 4.0]).tolist())
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    found = throughput.timed(lambda _: None, torch.device("cpu"), 5)
    assert (found.median, found.quartiles) == (pytest.approx(3), pytest.approx((2, 4)))
    assert found.rate(12)["quartiles"] == pytest.approx([3, 6])


def test_a_models_state_is_as_large_as_its_config_says(subject):
    # the fixture's is in float64, and predictions are of states in float32
    model = BraidModel(copy.deepcopy(subject.model.decoder).float(), subject.manifest().tokenizer_path)
    config = ThroughputConfig(lengths=[16, 8], batch=2, decode=3, repeats=2)
    found = throughput.throughput(replace(subject, model=model), config)
    assert [row["length"] for row in found.details["by_length"]] == [8, 16]
    for row in found.details["by_length"]:
        assert row["state_bytes"] == row["predicted_state_bytes"]
        assert row["peak_memory_bytes"] is None or row["peak_memory_bytes"] > 1 << 20
    assert found.figures["decode tokens per s at 16"].n == 2


def test_the_peak_is_of_what_came_after_it_was_reset():
    cpu = torch.device("cpu")
    if not throughput.reset_peak(cpu):
        pytest.skip("the system does not say how much memory a process had at most")
    low = throughput.peak(cpu)
    # pages of its own, where an allocator may hand out ones that it kept
    with mmap.mmap(-1, 30 << 20) as memory:
        memory[:: mmap.PAGESIZE] = bytes(len(memory) // mmap.PAGESIZE)
    high = throughput.peak(cpu)
    assert high - low > 25 << 20
    throughput.reset_peak(cpu)
    assert throughput.peak(cpu) < high - (25 << 20)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"lengths": []}, r"lengths \(\[\]\)"),
        ({"lengths": [0]}, r"lengths \(\[0\]\)"),
        ({"batch": 0}, r"batch \(0\)"),
        ({"lengths": [4090], "decode": 10}, r"behind the model's 4096 positions"),
    ],
)
def test_bad_settings_are_refused(values, sentence):
    with pytest.raises(ConfigError, match=sentence):
        ThroughputConfig(**values).check(4096)
