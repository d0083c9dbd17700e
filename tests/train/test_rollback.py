"""Rollback and quarantine: a run that met poison ends, bit for bit, as one whose data never had the window around it."""

import json
import os
import re
import shutil
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
from llm.train.quarantine import said as quarantine_said
from tests.train.conftest import MODEL, TRAIN
from tests.train.poison import BATCH, STEPS, TOKENS, T, dataset, effects, ending_at, holders, never
from tests.train.test_resume import records, start, stop_after

pytestmark = [pytest.mark.multirank, pytest.mark.timeout(300)]
NAN = float("nan")
BACK = ["train.bad_steps.then=rollback", "train.bad_steps.skip=0"]
SPIKES = ["train.bad_steps.spike.window=3", "train.bad_steps.spike.warmup=0", "train.bad_steps.spike.at_once=true"]
# as many losses are usual as a run without borders would remember
PHASES = ["train.phases=[{steps: 3}, {}]", "train.bad_steps.spike.loss=100", "train.bad_steps.spike.window=6"]
# the mark of step 4, which a run with a checkpoint at 2 goes back from, and the rows that are then in quarantine
POISON, ROWS = TOKENS[4], (2 * BATCH, 4 * BATCH)


def words_of(manifest: Manifest, runs: Path) -> list[str]:
    settings = [f"train.steps={STEPS}", "train.schedule.warmup=2", "train.checkpoint_every=2", "train.keep_last=4"]
    return [*MODEL, *TRAIN, *settings, f"data.manifest={manifest.root}", f"runs={runs}", "train.precision=fp32", "parallel.zero=3"]


def cases(rank: int, words: list[str], runs: Path) -> dict[str, str]:
    """What each start came to on this rank."""
    return {
        "never": case(words, "never", without=ROWS),
        "back": case(words, "back", *BACK, poison={POISON: NAN}),
        "spike": case(words, "spike", *BACK, *SPIKES, "train.bad_steps.spike.loss=1.5", poison={POISON: 30.0}),
        "bounded": case(words, "bounded", *BACK, "train.bad_steps.max_rollbacks=1", poison={POISON: NAN, TOKENS[5]: NAN}),
        "elastic": resumed([str(runs / "bounded"), "parallel.zero=0", "parallel.sequence=2"]),
    }


def more_cases(rank: int, words: list[str], carried: list[str], runs: Path) -> dict[str, str]:
    said = {
        "never": case(words, "never", without=ROWS),
        "back": case(words, "back", *BACK, poison={POISON: NAN}),
        "branch": case(words, "branch", *BACK, f"branch_from={runs / 'back' / 'checkpoints' / 'step-2'}", poison={POISON: NAN}),
        "twice": case(words, "twice", *BACK, poison={POISON: NAN, TOKENS[5]: NAN}),
        "early": case(words, "early", *BACK, poison={TOKENS[2]: NAN}),
        "phased never": case(words, "phased never", *PHASES, without=(3 * BATCH, 4 * BATCH)),
        "phased back": case(words, "phased back", *PHASES, *BACK, poison={POISON: NAN}),
        "carried never": case(carried, "carried never", without=ROWS),
        "carried back": case(carried, "carried back", *BACK, poison={POISON: NAN}),
    }
    # one bad step in a start, and one in the next
    if rank == 1:
        stop_after(3)
    said["counted"] = case(words, "counted", "train.bad_steps.skip=1", poison={TOKENS[2]: NAN})
    said["counted again"] = case(words, "counted", "train.bad_steps.skip=1", poison={POISON: NAN})
    return said


def case(words: list[str], name: str, *more: str, poison: dict[int, float] | None = None, without: Any = None) -> str:
    with effects(poison or {}), never(*without) if without else nullcontext():
        return start([*words, f"name={name}", *more])


def resumed(words: list[str]) -> str:
    with effects({POISON: NAN}):
        return start(words)


@pytest.fixture(scope="module")
def manifests(manifest: Manifest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Manifest]:
    folder, tokenizer = tmp_path_factory.mktemp("poison"), manifest.tokenizer_path.read_bytes()
    return {packing: dataset(folder, tokenizer, packing) for packing in ("concat", "contiguous")}


@pytest.fixture(scope="module")
def said(manifests: dict[str, Manifest], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, str]], Path]:
    runs = tmp_path_factory.mktemp("rollback")
    return run_ranks(cases, 2, words_of(manifests["concat"], runs), runs, timeout=250), runs


@pytest.fixture(scope="module")
def more_said(manifests: dict[str, Manifest], tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, str]], Path]:
    runs = tmp_path_factory.mktemp("more")
    carried = [*words_of(manifests["contiguous"], runs), "data.packing=contiguous", "model.layers.a.mixer.window=8"]
    return run_ranks(more_cases, 2, words_of(manifests["concat"], runs), carried, runs, timeout=500), runs


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


@pytest.mark.parametrize("name", ["back", "spike"])
def test_it_ends_as_if_the_window_had_never_been(name: str, said: Any, manifests: dict[str, Manifest]) -> None:
    each, runs = said
    for rank in each:
        assert rank[name] == f"step {STEPS}"
    same(runs / name, runs / "never")
    last = records(runs / name)[-1]
    assert (last["rollbacks"], last["quarantined_sequences"], last["tokens"]) == (1, 2 * BATCH, STEPS * BATCH * T)
    progress = json.loads((runs / name / "checkpoints" / f"step-{STEPS}" / "progress.json").read_text())
    assert [kept["rows"] for kept in progress["quarantine"]] == [list(ROWS)]
    assert progress["data"]["consumed"] == (STEPS + 2) * BATCH
    # verdicts went back too
    assert progress["bad_steps"]["steps"] == []
    if name == "spike":
        losses = [record["loss"] for record in records(runs / name)[-3:]]
        assert progress["bad_steps"]["spike"] == {"loss": pytest.approx(losses, rel=1e-6)}
    named(runs / name, manifests["concat"])


def named(run: Path, manifest: Manifest) -> int:
    """How many documents are suspects, of which one really holds the poison."""
    (record,) = lines(run)
    assert (record["step"], record["checkpoint"], record["rows"]) == (4, 2, list(ROWS))
    (poisoned,) = holders(manifest, POISON)
    (shard,) = record["documents"]
    suspects, documents = (
        {n for low, high in record[key][shard] for n in range(low, high + 1)} for key in ("suspects", "documents")
    )
    assert poisoned in suspects < documents
    return len(suspects)


def test_the_suspects_are_of_the_rank_whose_loss_was_not_finite(said: Any, manifests: dict[str, Manifest]) -> None:
    _, runs = said
    assert named(runs / "back", manifests["concat"]) < named(runs / "spike", manifests["concat"])
    why = {name: lines(runs / name)[0]["why"] for name in ("back", "spike")}
    assert why["back"] == "its gradient is not finite"
    assert re.fullmatch(r"its loss \(.*\) is more than 1.5 times the usual .* \(train.bad_steps.spike.loss\)", why["spike"])
    assert quarantine_said(lines(runs / "back")) == [
        "rows 16 to 31 are in quarantine since step 4, from which the run went back to step 2: its gradient is not finite"
    ]


def test_rollbacks_are_bounded(said: Any) -> None:
    each, runs = said
    for rank in each:
        assert (
            "step 3 is one more bad step than train.bad_steps.skip (0) allows in 1000 steps: its gradient is not" in rank["bounded"]
        )
        assert "it cannot go back: train.bad_steps.max_rollbacks (1) allows no more in 1000 steps" in rank["bounded"]
        assert "step-2 is the newest checkpoint, untouched: go on with `pretrain.py" in rank["bounded"]
        assert "train.bad_steps.max_rollbacks=MORE`" in rank["bounded"]
    assert json.loads((runs / "bounded/report/bad_step_3.json").read_text())["rows"] == [32, 40]


def test_another_layout_goes_on_behind_the_quarantine(said: Any) -> None:
    each, runs = said
    assert [rank["elastic"] for rank in each] == [f"step {STEPS}"] * 2
    as_never(runs / "bounded", runs)


def as_never(run: Path, runs: Path) -> None:
    """But for the order of sums."""
    ours, theirs = values(run), values(runs / "never")
    assert [record["loss"] for record in ours] == pytest.approx([record["loss"] for record in theirs], rel=0, abs=1e-5)
    assert [record["rows"] for record in lines(run)] == [list(ROWS)]


@pytest.mark.slow
def test_a_branch_leaves_out_what_its_origin_has_found(more_said: Any) -> None:
    each, runs = more_said
    assert [rank["branch"] for rank in each] == [f"step {STEPS}"] * 2
    assert values(runs / "branch") == values(runs / "never")[2:]
    assert lines(runs / "branch") == lines(runs / "back")


@pytest.mark.slow
def test_carried_states_start_afresh_behind_the_window(more_said: Any, manifests: dict[str, Manifest]) -> None:
    each, runs = more_said
    assert [rank["carried back"] for rank in each] == [f"step {STEPS}"] * 2
    same(runs / "carried back", runs / "carried never")
    named(runs / "carried back", manifests["contiguous"])


@pytest.mark.slow
def test_a_phase_goes_back_to_its_border(more_said: Any) -> None:
    each, runs = more_said
    assert [rank["phased back"] for rank in each] == [f"step {STEPS}"] * 2
    same(runs / "phased back", runs / "phased never")
    (line,) = lines(runs / "phased back")
    assert (line["checkpoint"], line["tokens"]) == (3, 3 * BATCH * T)
    ends = [runs / name / "checkpoints" / f"step-{STEPS}" / "progress.json" for name in ("phased back", "phased never")]
    # the former phase's are forgotten again
    back, never = (json.loads(path.read_text())["bad_steps"]["spike"]["loss"] for path in ends)
    assert back == never
    assert len(back) == STEPS - 3


@pytest.mark.slow
def test_a_second_rollback_widens_the_window(more_said: Any) -> None:
    each, runs = more_said
    assert [rank["twice"] for rank in each] == [f"step {STEPS}"] * 2
    assert [record["rows"] for record in lines(runs / "twice")] == [[16, 32], [16, 40]]
    progress = json.loads((runs / "twice" / "checkpoints" / f"step-{STEPS}" / "progress.json").read_text())
    assert progress["data"]["consumed"] == (STEPS + 3) * BATCH


@pytest.mark.slow
def test_without_a_checkpoint_it_saves_and_stops(more_said: Any) -> None:
    each, runs = more_said
    for rank in each:
        assert "it cannot go back: there is no checkpoint yet (train.checkpoint_every); saved in" in rank["early"]
    assert (runs / "early/checkpoints/latest").read_text() == "step-2\n"
    outcome = read_outcome(runs / "early" / "outcome.json")
    assert outcome is not None
    assert outcome.status == BAD_STEPS


@pytest.mark.slow
def test_bad_steps_count_over_a_restart(more_said: Any) -> None:
    each, runs = more_said
    for rank in each:
        assert rank["counted"] == "step 3"
        assert rank["counted again"].startswith("BadStepsError: step 4 is one more bad step than train.bad_steps.skip (1) allows")
    assert [record["step"] for record in lines(runs / "counted", "bad_steps.jsonl")] == [2, 4]


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


def killed(rank: int, words: list[str]) -> None:
    """Dies with -9 at the first step after the rollback."""
    with effects({POISON: NAN}), ending_at(3, 2, lambda: os.kill(os.getpid(), signal.SIGKILL)):
        start(words)


def went_on(rank: int, words: list[str]) -> str:
    return resumed(words)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_kill_after_the_rollback_changes_nothing(
    stage: int, manifests: dict[str, Manifest], more_said: Any, tmp_path: Path
) -> None:
    words = [*words_of(manifests["concat"], tmp_path), f"parallel.zero={stage}", *BACK]
    with pytest.raises(AssertionError, match="rank"):
        run_ranks(killed, 2, [*words, "name=killed"], timeout=200, connect=False)
    assert [path.name for path in (tmp_path / "killed" / "checkpoints").glob("step-*")] == ["step-2"]
    assert [record["step"] for record in records(tmp_path / "killed")] == [1, 2]
    shutil.copytree(tmp_path / "killed", tmp_path / "elsewhere")
    for name in ("killed", "whole"):
        assert run_ranks(went_on, 2, [*words, f"name={name}"], timeout=200) == [f"step {STEPS}"] * 2
    same(tmp_path / "killed", tmp_path / "whole")
    assert records(tmp_path / "killed") == records(tmp_path / "whole")
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
    assert run_ranks(went_on, 1, [str(tmp_path / "elsewhere")], timeout=200) == [f"step {STEPS}"]
    as_never(tmp_path / "elsewhere", more_said[1])
