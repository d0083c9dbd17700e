"""Rollback and quarantine: a run that met poison ends, bit for bit, as one whose data never had the window around it."""

import json
import os
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from llm.data import Manifest
from llm.testing import run_ranks
from llm.train.exits import BAD_STEPS, read_outcome
from llm.train.load import load_model
from tests.train.conftest import MODEL, TRAIN
from tests.train.poison import BATCH, STEPS, TOKENS, dataset, effects, ending_at, holders, never
from tests.train.test_resume import records, start, stop_after

pytestmark = [pytest.mark.multirank, pytest.mark.timeout(300)]
NAN = float("nan")
BACK = ["train.bad_steps.then=rollback", "train.bad_steps.skip=0"]
SPIKES = ["train.bad_steps.spike.window=4", "train.bad_steps.spike.warmup=0", "train.bad_steps.spike.at_once=true"]
# the mark of step 7, which a run with a checkpoint at 5 goes back from, and the rows that are then in quarantine
POISON, ROWS = TOKENS[7], (5 * BATCH, 7 * BATCH)


def words_of(manifest: Manifest, runs: Path) -> list[str]:
    settings = [f"train.steps={STEPS}", "train.checkpoint_every=5", "train.keep_last=4", "train.precision=fp32"]
    return [*MODEL, *TRAIN, *settings, f"data.manifest={manifest.root}", f"runs={runs}", "parallel.zero=3"]


def cases(rank: int, words: list[str], carried: list[str], runs: Path) -> dict[str, str]:
    """What each start came to on this rank."""
    said: dict[str, str] = {}

    def case(name: str, *more: str, poison: dict[int, float] | None = None, without: tuple[int, int] | None = None) -> None:
        base = carried if name.startswith("carried") else words
        with effects(poison or {}), never(*without) if without else nullcontext():
            said[name] = start([*base, f"name={name}", *more])

    case("never", without=ROWS)
    case("back", *BACK, poison={POISON: NAN})
    case("spike", *BACK, *SPIKES, "train.bad_steps.spike.loss=1.5", poison={POISON: 30.0})
    case("branch", *BACK, f"branch_from={runs / 'back' / 'checkpoints' / 'step-5'}", poison={POISON: NAN})
    case("twice", *BACK, poison={POISON: NAN, TOKENS[9]: NAN})
    case("bounded", *BACK, "train.bad_steps.max_rollbacks=1", poison={POISON: NAN, TOKENS[9]: NAN})
    case("early", *BACK, poison={TOKENS[3]: NAN})
    case("carried never", without=ROWS)
    case("carried back", *BACK, poison={POISON: NAN})
    # once a start, and once in the next
    if rank == 1:
        stop_after(5)
    case("counted", "train.bad_steps.skip=1", poison={TOKENS[3]: NAN})
    case("counted again", "name=counted", "train.bad_steps.skip=1", poison={POISON: NAN})
    return said


@pytest.fixture(scope="module")
def manifests(manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Manifest]:
    folder, tokenizer = tmp_path_factory.mktemp("poison"), manifest.tokenizer_path.read_bytes()
    return {packing: dataset(folder, tokenizer, packing) for packing in ("concat", "contiguous")}


@pytest.fixture(scope="module")
def said(manifests: dict[str, Manifest], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, str]], Path]:
    runs = tmp_path_factory.mktemp("rollback")
    carried = [*words_of(manifests["contiguous"], runs), "data.packing=contiguous", "model.layers.a.mixer.window=8"]
    return run_ranks(cases, 2, words_of(manifests["concat"], runs), carried, runs, timeout=150), runs


def same(ours: Path, theirs: Path) -> None:
    """Weights, and what the records say of steps."""
    (a, _, info), (b, _, other) = load_model(ours), load_model(theirs)
    assert info.step == other.step == STEPS
    for (name, x), y in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.equal(x, y), name
    assert values(ours) == values(theirs)


def values(run: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in record.items() if k not in ("rollbacks", "quarantined_sequences")} for record in records(run)]


def lines(run: Path, name: str = "quarantine.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "report" / name).read_text().splitlines()]


@pytest.mark.parametrize("name", ["back", "spike", "branch", "carried back"])
def test_it_ends_as_if_the_window_had_never_been(name: str, said: Any) -> None:
    each, runs = said
    for rank in each:
        assert rank[name] == f"step {STEPS}"
    if name == "branch":
        assert values(runs / name) == values(runs / "never")[5:]
        return
    same(runs / name, runs / ("carried never" if name.startswith("carried") else "never"))
    assert records(runs / name)[-1]["rollbacks"] == 1
    assert records(runs / name)[-1]["quarantined_sequences"] == 16
    assert records(runs / name)[-1]["tokens"] == STEPS * BATCH * 32


@pytest.mark.parametrize("name", ["back", "spike", "branch", "carried back"])
def test_the_quarantine_names_the_document_that_holds_the_poison(name: str, said: Any, manifests: dict[str, Manifest]) -> None:
    (record,) = lines(said[1] / name)
    assert (record["step"], record["checkpoint"], record["rows"]) == (7, 5, list(ROWS))
    manifest = manifests["contiguous" if name.startswith("carried") else "concat"]
    (poisoned,) = holders(manifest, POISON)
    shard = manifest.split("train")[0].path
    for part in ("suspects", "documents"):
        assert any(low <= poisoned <= high for low, high in record[part][shard]), part
    of_the_step, of_all = (sum(high - low + 1 for low, high in record[part][shard]) for part in ("suspects", "documents"))
    assert of_the_step < of_all
    if name == "back":
        # of the rank whose loss was not finite alone
        assert of_the_step < lines_of_spike(said[1], shard)
    assert ("its loss" if name == "spike" else "its gradient is not finite") in record["why"]
    progress = json.loads((said[1] / name / "checkpoints" / f"step-{STEPS}" / "progress.json").read_text())
    assert [kept["rows"] for kept in progress["quarantine"]] == [list(ROWS)]
    assert progress["data"]["consumed"] == STEPS * BATCH + 16


def lines_of_spike(runs: Path, shard: str) -> int:
    (record,) = lines(runs / "spike")
    return sum(high - low + 1 for low, high in record["suspects"][shard])


def test_a_second_rollback_widens_the_window(said: Any) -> None:
    each, runs = said
    assert [rank["twice"] for rank in each] == [f"step {STEPS}"] * 2
    assert [record["rows"] for record in lines(runs / "twice")] == [[40, 56], [40, 72]]
    assert json.loads((runs / "twice/checkpoints/step-12/progress.json").read_text())["data"]["consumed"] == STEPS * BATCH + 32


def test_rollbacks_are_bounded(said: Any) -> None:
    each, runs = said
    for rank in each:
        assert (
            "step 7 is one more bad step than train.bad_steps.skip (0) allows in 1000 steps: its gradient is not" in rank["bounded"]
        )
        assert "it cannot go back: train.bad_steps.max_rollbacks (1) allows no more in 1000 steps" in rank["bounded"]
        assert "step-5 is the newest checkpoint, untouched: go on with `pretrain.py" in rank["bounded"]
    outcome = read_outcome(runs / "bounded" / "outcome.json")
    assert outcome is not None
    assert outcome.status == BAD_STEPS
    assert json.loads((runs / "bounded/report/bad_step_7.json").read_text())["rows"] == [64, 72]


def test_without_a_checkpoint_it_saves_and_stops(said: Any) -> None:
    each, runs = said
    for rank in each:
        assert "it cannot go back: there is no checkpoint yet (train.checkpoint_every); saved in" in rank["early"]
    assert (runs / "early/checkpoints/latest").read_text() == "step-3\n"


def test_bad_steps_count_over_a_restart(said: Any) -> None:
    each, runs = said
    for rank in each:
        assert rank["counted"] == "step 5"
        assert rank["counted again"].startswith("BadStepsError: step 7 is one more bad step than train.bad_steps.skip (1) allows")
    assert [record["step"] for record in lines(runs / "counted", "bad_steps.jsonl")] == [3, 7]


def killed(rank: int, words: list[str]) -> None:
    """Dies with -9 at the first step after the rollback."""
    with effects({POISON: NAN}), ending_at(6, 2, lambda: os.kill(os.getpid(), signal.SIGKILL)):
        start(words)


def resumed(rank: int, words: list[str]) -> str:
    with effects({POISON: NAN}):
        return start(words)


def test_other_ranks_go_on_after_a_kill(said: Any, manifests: dict[str, Manifest]) -> None:
    _, runs = said
    with pytest.raises(AssertionError, match="rank"):
        run_ranks(killed, 2, [*words_of(manifests["concat"], runs), "name=killed", *BACK], timeout=100, connect=False)
    run = runs / "killed"
    assert [record["step"] for record in records(run)] == [1, 2, 3, 4, 5]
    assert [path.name for path in sorted((run / "checkpoints").glob("step-*"))] == ["step-5"]
    assert run_ranks(resumed, 1, [str(run), "parallel.zero=0"], timeout=100) == [f"step {STEPS}"]
    assert lines(run) == lines(runs / "back")
    ours, theirs = values(run), values(runs / "never")
    assert [record["loss"] for record in ours] == pytest.approx([record["loss"] for record in theirs], rel=0, abs=1e-5)


LAYOUTS = {
    **{f"zero {stage}": [f"parallel.zero={stage}", "train.precision=fp32"] for stage in (0, 1, 2, 3)},
    **{f"bf16 zero {stage}": [f"parallel.zero={stage}", "train.precision=bf16"] for stage in (1, 2, 3)},
    "muon": ["train.optimizer.kind=muon", "parallel.zero=2"],
    "offload": ["parallel.offload=optimizer", "parallel.zero=3"],
    "micro-batches": ["train.micro_batch=2", "parallel.zero=2"],
    "sequences": ["parallel.sequence=2", "parallel.zero=1"],
}
PLANTED = {
    "nan": (NAN, []),
    "loss": (30.0, [*SPIKES, "train.bad_steps.spike.loss=1.5"]),
    "norm": (30.0, [*SPIKES, "train.bad_steps.spike.grad_norm=3"]),
}


def every_layout(rank: int, words: list[str]) -> dict[str, str]:
    said = {}
    for layout, settings in LAYOUTS.items():
        with never(*ROWS):
            said[f"{layout} never"] = start([*words, *settings, f"name={layout} never"])
        for planted, (factor, more) in PLANTED.items():
            with effects({POISON: factor}):
                said[f"{layout} {planted}"] = start([*words, *settings, *BACK, *more, f"name={layout} {planted}"])
    return said


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_layout_goes_back(manifests: dict[str, Manifest], tmp_path: Path) -> None:
    for said in run_ranks(every_layout, 2, words_of(manifests["concat"], tmp_path), timeout=1100):
        assert said == {f"{layout} {case}": f"step {STEPS}" for layout in LAYOUTS for case in ("never", *PLANTED)}
    for layout in LAYOUTS:
        for planted in PLANTED:
            same(tmp_path / f"{layout} {planted}", tmp_path / f"{layout} never")
            assert [record["rows"] for record in lines(tmp_path / f"{layout} {planted}")] == [list(ROWS)]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_kill_after_the_rollback_changes_nothing(stage: int, manifests: dict[str, Manifest], tmp_path: Path) -> None:
    words = [*words_of(manifests["concat"], tmp_path), f"parallel.zero={stage}", *BACK]
    with pytest.raises(AssertionError, match="rank"):
        run_ranks(killed, 2, [*words, "name=killed"], timeout=200, connect=False)
    assert [path.name for path in (tmp_path / "killed" / "checkpoints").glob("step-*")] == ["step-5"]
    for name in ("killed", "whole"):
        assert run_ranks(resumed, 2, [*words, f"name={name}"], timeout=200) == [f"step {STEPS}"] * 2
    same(tmp_path / "killed", tmp_path / "whole")
    assert records(tmp_path / "killed") == records(tmp_path / "whole")
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
