"""Phases: data, context and schedule change at an exact token, and a kill at a border changes nothing."""

import gc
import json
import os
import shutil
import signal
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from eval.bigram import BigramConfig, read_in_training
from eval.find import Reading, find_model
from llm.data import Batches, Manifest
from llm.testing import run_ranks
from llm.train import checkpoint_files as files
from llm.train.load import load_model
from llm.train.run_folder import RunFolder
from llm.train.world import World
from tests.train.conftest import MODEL, TRAIN, VOCABULARY, write_dataset
from tests.train.test_carried import WINDOWED
from tests.train.test_resume import records, start, stop_after

pytestmark = [pytest.mark.multirank, pytest.mark.timeout(300)]
Words = Callable[..., list[str]]
TAKE = Batches.__next__
# stable, then other text and rates, then eight times the context
STABLE = "{name: stable, steps: 6}"
ANNEALING = "{name: annealing, tokens: 1536, data: {mixture: {text: 1, code: 3}}, train: {schedule: {kind: linear, warmup: 0}}}"
LONG = (
    "{{name: long, tokens: 2048, data: {{sequence_length: {length}}}, model: {{layers: {{a: {{mixer: {{rope_theta: 50000}}}}}}}}, "
    "train: {{batch: 2, micro_batch: 1, optimizer: {{lr: 0.001}}}}}}"
)
PHASES = f"train.phases=[{STABLE},{ANNEALING},{LONG.format(length=256)}]"
SETTINGS = ["train.precision=fp32", "train.checkpoint_every=4", "train.keep_every=8"]
STEPS, BORDERS = 16, (6, 12)


@pytest.fixture
def words(two_sources: Manifest, tmp_path: Path) -> Words:
    train = [word for word in TRAIN if not word.startswith("train.steps")]
    return lambda *more: [*MODEL, *train, *SETTINGS, f"data.manifest={two_sources.root}", f"runs={tmp_path / 'runs'}", *more]


class Killed(Exception):
    """Stands for a kill where a process has to live on."""


def dying_at(engine: int) -> None:
    """From now on, this process is `killed` when it makes its engine of that number."""
    from llm.train import loop

    create, made = loop.create_engine, []

    def creating(*given: Any) -> Any:
        made.append(None)
        if len(made) == engine:
            loop.create_engine = create
            raise Killed
        return create(*given)

    loop.create_engine = creating


def watching_memory(alive: list[int]) -> Callable[..., Any]:
    """From now on: how many earlier engines' models are alive when one is made."""
    from llm.train import loop

    create, models = loop.create_engine, []

    def creating(*given: Any) -> Any:
        alive.append(sum(model() is not None for model in models))
        engine = create(*given)
        models.append(weakref.ref(engine.module.decoder))
        return engine

    loop.create_engine = creating
    return create


def read_by(run: Callable[[], str]) -> tuple[str, torch.Tensor]:
    """What a start says, and how often it read each label; every position counts."""
    seen = torch.zeros(VOCABULARY + 1, dtype=torch.long)

    def taking(self: Batches) -> Any:
        batches = TAKE(self)
        for batch in batches:
            labels = torch.where(batch.labels_BT >= 0, batch.labels_BT, VOCABULARY)
            seen.add_(torch.bincount(labels.flatten(), minlength=VOCABULARY + 1))
        return batches

    Batches.__next__ = taking  # type: ignore[method-assign]
    try:
        return run(), seen
    finally:
        Batches.__next__ = TAKE  # type: ignore[method-assign]


def starts(rank: int, words: list[str], runs: Path) -> dict[str, Any]:
    from llm.train import loop

    said, alive = {}, []
    create = watching_memory(alive)
    said["whole"], said["read"] = read_by(lambda: start([*words, PHASES, "parallel.zero=2", "name=whole"]))
    loop.create_engine, said["alive"] = create, alive
    # asked to stop in the last step of a phase; killed when the next one's checkpoint is there; and on to the end
    cut = [*words, PHASES, "parallel.zero=2", "name=cut"]
    stop_after(6)
    said["stopped"] = start(cut)
    Batches.__next__ = TAKE  # type: ignore[method-assign]
    dying_at(2)
    with pytest.raises(Killed):
        start(cut)
    gc.collect()
    said["cut"] = start([str(runs / "cut")])
    # from the midst of the second phase, to another third one
    other = f"train.phases=[{STABLE},{ANNEALING},{LONG.format(length=128)}]"
    point = f"branch_from={runs / 'whole/checkpoints/step-8'}"
    said["branch"] = start([*words, other, "parallel.zero=2", "name=branch", point])
    said["other past"] = start([*words, PHASES.replace("code: 3", "code: 2"), "name=no", point])
    # a dataset that no later phase reads is gone when the run goes on, at the border and behind it
    gone = write_dataset(runs / "gone", ["text"]).root
    settings = [*words, f"train.phases=[{{steps: 3, data: {{manifest: {gone}}}}},{{steps: 3}}]", "train.checkpoint_every=1"]
    said["kept"] = start([*settings, "name=kept"])
    stop_after(3)
    said["border"] = start([*settings, "name=moved"])
    shutil.rmtree(gone)
    stop_after(4)
    said["behind"] = start([str(runs / "moved")])
    Batches.__next__ = TAKE  # type: ignore[method-assign]
    said["end"] = start([str(runs / "moved")])
    return said


def same_weights(a: Path, b: Path) -> bool:
    (one, *_), (other, *_) = load_model(a), load_model(b)
    return all(torch.equal(x, y) for x, y in zip(one.parameters(), other.parameters(), strict=True))


def progress(checkpoint: Path) -> dict[str, Any]:
    return json.loads((checkpoint / files.PROGRESS).read_text())


def test_borders_change_nothing_but_what_they_say(words: Words, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    (said,) = run_ranks(starts, 1, words(), runs, timeout=250)
    assert [said[name] for name in ("whole", "stopped", "cut", "branch")] == ["step 16", "step 6", "step 16", "step 20"]
    assert [said[name] for name in ("kept", "border", "behind", "end")] == ["step 6", "step 3", "step 4", "step 6"]
    assert records(runs / "moved") == records(runs / "kept")
    assert "train.phases[1].data.mixture.code: 3.0 -> 2.0" in said["other past"]
    assert said["alive"] == [0, 0, 0]
    whole = records(runs / "whole")
    assert [record["phase"] for record in whole] == [0] * 6 + [1] * 6 + [2] * 4
    assert [whole[step - 1]["tokens"] for step in (6, 12, 16)] == [6 * 256, 12 * 256, 12 * 256 + 4 * 512]
    assert said["read"].sum() == whole[-1]["tokens"]
    subject = find_model(str(runs / "whole")).load(World(0, 1, torch.device("cpu")), Reading(torch.device("cpu")))
    assert subject.trained is not None
    labels = [stream.rows(rows).labels.ravel() for stream, rows in read_in_training(subject, subject.trained, BigramConfig())]
    found = torch.from_numpy(np.concatenate(labels))
    assert torch.equal(torch.bincount(torch.where(found >= 0, found, VOCABULARY), minlength=VOCABULARY + 1), said["read"])
    kept = files.checkpoints(runs / "whole" / "checkpoints")
    assert [path.name for path in kept] == ["step-16", "step-12", "step-8", "step-6"]
    last = progress(kept[0])
    assert (last["phase"], last["tokens"], last["began"], last["data"]["consumed"]) == (2, whole[-1]["tokens"], [0, 48, 96], 104)

    assert records(runs / "cut") == whole
    assert same_weights(runs / "cut", runs / "whole")
    assert records(runs / "branch")[:4] == whole[8:12]
    _, config, _ = load_model(runs / "whole")
    assert (config.data.sequence_length, config.model.layers["a"].mixer.rope_theta) == (256, 50000)


def killed(rank: int, words: list[str], where: str, border: int) -> None:
    """Rank 1 dies at a border: while its checkpoint is written, before the next engine is made, in the first step."""
    from llm.train import loop
    from llm.train import save as writing

    def die(*_: Any) -> None:
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    if where == "write":
        save = writing.save_file

        def saving(tensors: Any, path: Path, metadata: Any) -> None:
            if f".step-{border}." in str(path):
                die()
            save(tensors, path, metadata)

        writing.save_file = saving
    else:
        name = {"engine": "create_engine", "step": "optimizer_step"}[where]
        inner, start_of, here = getattr(loop, name), loop.start_of, []

        def starting(*given: Any) -> Any:
            found = start_of(*given)
            here.append(found.step)
            return found

        def dying(*given: Any) -> Any:
            if here[-1] == border:
                die()
            return inner(*given)

        loop.start_of = starting
        setattr(loop, name, dying)
    start(words)


def leg(rank: int, words: list[str], stop: int) -> tuple[str, torch.Tensor]:
    def run() -> str:
        if rank == 0 and stop < STEPS:
            stop_after_steps(stop, words)
        return start(words)

    return read_by(run)


def stop_after_steps(step: int, words: list[str]) -> None:
    """From now on, this process is asked to stop when it reports that step."""
    from llm.train import loop

    report = loop.report

    def reporting(run: Any, *given: Any) -> None:
        report(run, *given)
        if run.step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    loop.report = reporting


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kills_before_at_and_after_each_border(words: Words, tmp_path: Path) -> None:
    settings, runs = words(PHASES, "parallel.zero=2"), tmp_path / "runs"
    assert run_ranks(leg, 2, [*settings, "name=whole"], STEPS, timeout=100)[0][0] == "step 16"
    before = {6: "step-4", 12: "step-8"}
    for border in BORDERS:
        for where in ("write", "engine", "step"):
            with pytest.raises(AssertionError, match="rank"):
                run_ranks(killed, 2, [*settings, "name=hit"], where, border, timeout=100, connect=False)
            newest = before[border] if where == "write" else f"step-{border}"
            assert files.checkpoints(runs / "hit" / "checkpoints")[0].name == newest, where
    assert run_ranks(leg, 2, [str(runs / "hit")], STEPS, timeout=100)[0][0] == "step 16"
    assert records(runs / "hit") == records(runs / "whole")
    assert same_weights(runs / "hit", runs / "whole")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_other_ranks_go_on_across_borders(words: Words, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    first = words(PHASES, "parallel.zero=3")
    ((said, read), *_) = run_ranks(leg, 1, [*first, "name=whole"], STEPS, timeout=100)
    total = torch.zeros_like(read)
    moved = [str(runs / "moved")]
    for ranks, stop, given in (
        (2, 5, [*first, "name=moved"]),
        (1, 9, [*moved, "parallel.zero=0"]),
        (2, STEPS, [*moved, "parallel.zero=1", "parallel.sequence=2"]),
    ):
        found = run_ranks(leg, ranks, given, stop, timeout=100)
        assert {said for said, _ in found} == {f"step {stop}"}
        total += sum(labels for _, labels in found)
    assert said == "step 16"
    assert torch.equal(total, read)
    for ours, theirs in zip(records(runs / "moved"), records(runs / "whole"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0, abs=1e-5), ours["step"]
    assert progress(RunFolder(runs / "moved").checkpoints / "step-16")["began"] == [0, 48, 96]


def two_starts(rank: int, words: list[str]) -> list[str]:
    return [start([*words, "name=one"]), start([*words, "train.phases=[{steps: 3},{train: {optimizer: {lr: 0.01}}}]", "name=two"])]


@pytest.mark.slow
def test_carried_states_go_on_over_a_border(words: Words, tmp_path: Path) -> None:
    """A border that changes nothing changes nothing, also of states that go on from step to step."""
    runs = tmp_path / "runs"
    contiguous = [*words(), *WINDOWED, "data.packing=contiguous", "train.steps=6"]
    for said in run_ranks(two_starts, 2, contiguous, timeout=200):
        assert said == ["step 6"] * 2
    # validated at the border too
    one, two = (
        [{key: value for key, value in record.items() if key != "phase" and "validation" not in key} for record in records(run)]
        for run in (runs / "one", runs / "two")
    )
    assert two == one
    assert same_weights(runs / "one", runs / "two")
