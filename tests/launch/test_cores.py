"""Ranks of one host share its cores, unless a person or launcher has said how many threads each runs."""

import pytest
import torch

from llm.train.start import share_cores


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("variables", "device", "left"), [
    ({"LOCAL_SIZE": "2"}, "cpu", 2),
    ({"LOCAL_SIZE": "9"}, "cpu", 1),
    ({}, "cpu", 4),
    ({"LOCAL_SIZE": "2", "OMP_NUM_THREADS": "4"}, "cpu", 4),
    ({"LOCAL_SIZE": "2"}, "cuda", 4),
])  # fmt: skip
def test_threads_of_a_rank(variables, device, left, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    share_cores(torch.device(device))
    assert torch.get_num_threads() == left
