"""On several ranks: the figures of one rank, to the bit; one report; the first rank's error is everyone's."""

import json
import os
from pathlib import Path

import pytest

from eval import lanes
from eval.run import main as evaluate
from llm.testing import run_ranks
from tests.eval.writing import small_config, write_run

pytestmark = [pytest.mark.multirank, pytest.mark.timeout(180)]

# what works, and what only the rank that runs it finds out to be wrong
SUITE = (
    "tasks: {perplexity: {lanes: 3}, rolling: {task: perplexity, rule: harness}, bigram: {}, wrong: {task: bigram, sequences: 0}}\n"
)


def measure(rank: int, folder: str, out: str, *more: str) -> int:
    os.chdir(folder)
    # several groups of documents, so that each rank has some
    lanes.LANE_TOKENS = 8
    return evaluate(["--model", "small", "--device", "cpu", "--out", out, *more, "suite.yaml"])


def test_two_ranks_measure_what_one_does(subject, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lanes, "LANE_TOKENS", 8)
    (tmp_path / "data").symlink_to(subject.manifest().root)
    (tmp_path / "suite.yaml").write_text(SUITE)
    write_run(tmp_path / "small", small_config(subject.model.decoder.config), subject.manifest().tokenizer_path.read_bytes())
    assert run_ranks(measure, 2, str(tmp_path), "two", timeout=120, connect=False) == [2, 2]
    assert measure(0, str(tmp_path), "one") == 2
    for task in ("perplexity", "rolling", "bigram"):
        two, one = (read(tmp_path / ranks, task) for ranks in ("two", "one"))
        assert (two["ranks"], one["ranks"]) == (2, 1)
        assert (two["figures"], two["details"], two["key"]) == (one["figures"], one["details"], one["key"])
    # every text split over both ranks: the same tokens, with other rounding
    assert run_ranks(measure, 2, str(tmp_path), "split", "--split", timeout=120, connect=False) == [2, 2]
    for task in ("perplexity", "rolling"):
        split, one = (read(tmp_path / how, task) for how in ("split", "one"))
        assert split["details"]["text"] == one["details"]["text"]
        for name, figure in one["figures"].items():
            assert split["figures"][name]["value"] == pytest.approx(figure["value"], rel=1e-6), f"{task}, {name}"


def read(out: Path, task: str) -> dict:
    return json.loads((out / "small" / f"eval-{task}.json").read_text())
