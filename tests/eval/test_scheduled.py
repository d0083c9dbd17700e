"""Evaluations inside training: under every kind of ZeRO, on two ranks, the figures of the checkpoint of the same step."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from eval.run import main as evaluate
from eval.scheduled import evaluation
from llm.errors import ConfigError
from llm.testing import run_ranks
from llm.train.start import pretrain

pytestmark = [pytest.mark.multirank, pytest.mark.timeout(240)]

MODEL = """
model:
  width: 16
  depth: 2
  vocab_size: 300
  layers:
    r: {mixer: {kind: retention, heads: 2}, ffn: {kind: swiglu}}
    a: {mixer: {kind: attention, heads: 2, window: 7}, ffn: {kind: none}}
  pattern: [r, a]
data: {manifest: data, sequence_length: 16}
train:
  steps: 4
  batch: 4
  precision: fp32
  optimizer: {lr: 0.01}
  schedule: {warmup: 1}
  log_every: 4
  checkpoint_every: 2
  peak_flops: 1.0e9
  tensorboard: false
  evaluate: {every: 2, tasks: [perplexity, lanes=1, max_tokens=150]}
"""


def train(rank: int, folder: str, runs: list[list[str]]) -> None:
    os.chdir(folder)
    from llm.train.world import World

    World.from_environment().connect()
    for words in runs:
        pretrain(["run.yaml", *words], evaluation)


def metrics(run: Path) -> dict[int, dict[str, Any]]:
    return {record["step"]: record for record in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())}


@pytest.fixture
def folder(subject, tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(subject.manifest().root)
    (tmp_path / "run.yaml").write_text(MODEL)
    return tmp_path


@pytest.mark.parametrize(
    "kinds", [{"zero3": 3}, pytest.param({"zero0": 0, "zero1": 1, "zero2": 2, "split": 3}, marks=pytest.mark.slow)], ids="/".join
)
def test_a_run_measures_what_its_checkpoints_are(folder, kinds, capfd):
    # one lane, so that the ranks have unequal numbers of batches
    runs = [
        [f"name={kind}", f"parallel.zero={stage}", f"parallel.sequence={1 + (kind == 'split')}"] for kind, stage in kinds.items()
    ]
    runs.append(["name=late", "parallel.zero=3", "train.steps=2", "train.evaluate.minutes=1e-9"])
    runs.append(["name=none", "parallel.zero=3", "train.steps=2", "train.evaluate.tasks=[perplexity,text=nowhere]"])
    run_ranks(train, 2, str(folder), runs, timeout=200, connect=False)
    name = "eval/perplexity/bits_per_byte"
    for kind in kinds:
        run = folder / "runs" / kind
        assert [name in record for record in metrics(run).values()] == [True, True]
        for step in (2, 4):
            words = ["--model", str(run / "checkpoints" / f"step-{step}"), "--device", "cpu", "--out", f"{kind}-{step}"]
            assert evaluate([*words, "perplexity", "lanes=1", "max_tokens=150"]) == 0
            (report,) = (folder / f"{kind}-{step}").rglob("eval-perplexity.json")
            figure = json.loads(report.read_text())["figures"]["bits_per_byte"]
            assert metrics(run)[step][name] == pytest.approx(figure["value"], rel=1e-6)
            inside = json.loads((run / "report" / f"step-{step}" / "eval-perplexity.json").read_text())
            assert inside["figures"]["bits_per_byte"]["n"] == figure["n"]
    said = capfd.readouterr().out
    assert "step 4: perplexity: nats per token" in said
    assert "step 2: evaluation left out after 1e-09 minutes" in said
    assert "step 2: evaluation left out: text (nowhere) does not exist" in said
    assert not any(name in record for left in ("late", "none") for record in metrics(folder / "runs" / left).values())


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("train.evaluate.tasks=[perplexty]", "did you mean 'perplexity'"),
        ("train.evaluate.tasks=[throughput]", r"train.evaluate.tasks \(throughput\) cannot run inside training"),
        ("train.evaluate.minutes=0", r"train.evaluate.minutes \(0"),
        ("train.evaluate.every=-1", r"train.evaluate.every \(-1\)"),
    ],
)
def test_what_cannot_run_is_told_before_training_starts(folder, words, sentence, monkeypatch):
    monkeypatch.setattr("llm.train.world.World.connect", lambda self: pytest.fail("a process group was started"))
    with pytest.raises(ConfigError, match=sentence):
        pretrain(["run.yaml", "name=wrong", words], evaluation)
    assert not (folder / "runs" / "wrong").exists()
