"""Data x sequence: four ranks as 2 x 2 draw the curve of one rank, whatever ZeRO splits; bad grids are refused first."""

from pathlib import Path

import pytest

from llm.data import Manifest
from llm.errors import ConfigError
from llm.testing import run_ranks
from llm.train.config import load_config
from llm.train.laws import check
from llm.train.metrics import read_metrics
from llm.train.rehearsal import rehearse
from llm.train.run_folder import RunFolder
from tests.train.conftest import MODEL, TRAIN
from tests.train.test_resume import records, start

LAYERS = [
    *MODEL,
    "model.depth=5",
    "model.layers.a.mixer.heads=4",
    "model.layers.a.mixer.kv_heads=1",
    "model.layers.w.mixer.kind=attention",
    "model.layers.w.mixer.heads=4",
    "model.layers.w.mixer.window=5",
    "model.layers.m.mixer.kind=mamba2",
    "model.layers.m.mixer.heads=4",
    "model.layers.m.mixer.state=8",
    # one head, which two ranks cannot divide
    "model.layers.s.mixer.kind=slstm",
    "model.layers.s.mixer.heads=1",
    "model.pattern=[r,a,w,m,s]",
]


@pytest.fixture
def words(manifest: Manifest, tmp_path: Path):
    settings = [
        "train.precision=fp32",
        "train.optimizer.lr=0.001",
        "train.micro_batch=2",
        "train.batch=8",
        "train.validate_every=10",
    ]
    return lambda *more: [*LAYERS, *TRAIN, *settings, f"data.manifest={manifest.root}", f"runs={tmp_path / 'runs'}", *more]


GRIDS = {
    "zero1": ["parallel.sequence=2", "parallel.zero=1"],
    "zero2": ["parallel.sequence=2", "parallel.zero=2"],
    "zero3": ["parallel.sequence=2", "parallel.zero=3"],
    "pipelined": ["parallel.sequence=2", "parallel.mode=pipelined", "train.activation_checkpointing=true"],
    "four": ["parallel.sequence=4"],
    "compiled": ["parallel.sequence=2", "parallel.zero=2", "train.compile_blocks=true"],
}


def grids(rank: int, words: list[str], names: list[str]) -> list[str]:
    return [start([*words, *GRIDS[name], f"name={name}"]) for name in names]


def one_rank(rank: int, words: list[str]) -> str:
    return start([*words, "name=one"])


def same_curve(runs: Path, name: str) -> None:
    """As of the run on one rank."""
    for ours, theirs in zip(records(runs / name), records(runs / "one"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0, abs=1e-5), f"{name}, step {ours['step']}"
        assert ours["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4), f"{name}, step {ours['step']}"
        assert ours.keys() == theirs.keys()
        if "validation_loss" in ours:
            assert ours["validation_loss"] == pytest.approx(theirs["validation_loss"], rel=0, abs=1e-5)


@pytest.mark.multirank
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "names", [["zero3"], pytest.param(["zero1", "zero2", "pipelined", "four"], marks=pytest.mark.slow)], ids=["zero3", "more"]
)
def test_a_grid_draws_the_curve_of_one_rank(words, tmp_path: Path, names: list[str]) -> None:
    assert run_ranks(one_rank, 1, words(), timeout=60) == ["step 20"]
    for said in run_ranks(grids, 4, words(), names, timeout=330):
        assert said == ["step 20"] * len(names)
    one = records(tmp_path / "runs/one")
    for name in names:
        same_curve(tmp_path / "runs", name)
    assert one[-1]["loss"] < one[0]["loss"] - 0.01
    predicted = rehearse(load_config(words(*GRIDS[names[0]])), 4).sent
    for record in read_metrics(RunFolder(tmp_path / "runs" / names[0])):
        sent = {key.split("/")[2]: n for key, n in record.items() if key.startswith("sent/sequence/") and key.endswith("bytes")}
        assert sent == predicted, f"{names[0]}, step {record['step']}"


@pytest.mark.slow
@pytest.mark.multirank
@pytest.mark.timeout(900)
def test_compiled_blocks_draw_it_too(words, tmp_path: Path) -> None:
    run_ranks(one_rank, 1, words(), timeout=60)
    assert run_ranks(grids, 2, words(), ["compiled"], timeout=800) == [["step 20"]] * 2
    same_curve(tmp_path / "runs", "compiled")


@pytest.mark.parametrize(
    ("more", "ranks", "sentence"),
    [
        (["parallel.sequence=3"], 4, r"parallel\.sequence \(3\) must divide the ranks \(4\); use one of \[1, 2, 4\]"),
        (["parallel.sequence=8"], 4, r"parallel\.sequence \(8\) must divide the ranks \(4\)"),
        (["parallel.sequence=0"], 4, r"parallel\.sequence \(0\) must be at least 1"),
        (
            ["parallel.sequence=4", "data.sequence_length=30"],
            4,
            r"data\.sequence_length \(30\) must be a multiple of parallel\.sequence \(4\); use 28 or 32",
        ),
        (
            ["parallel.sequence=2", "parallel.mode=heads"],
            2,
            r"layers\.s\.mixer \(slstm\) has 1 heads, fewer than the ranks \(parallel\.sequence 2\) .* in \[1\], or parallel\.mode",
        ),
        (["parallel.sequence=2", "parallel.mode=state"], 2, r"\(recurrent\) whose state does not compose, .* parallel\.mode=auto"),
        (["parallel.mode=heads"], 2, r"parallel\.mode \(heads\) has no effect with parallel\.sequence=1"),
        (["parallel.sequence=16", "train.batch=8"], 16, r"looks 3 tokens back, more than the 2 that a rank holds"),
    ],
)
def test_grids_that_cannot_work_are_refused(words, manifest: Manifest, more: list[str], ranks: int, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        check(load_config(words(*more)), ranks, manifest)
