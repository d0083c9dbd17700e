"""Stopping and resuming, killing and damaging: the run goes on from the newest whole checkpoint, bit for bit."""

import errno
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from llm.errors import BraidError
from llm.testing import run_ranks
from llm.train import checkpoint_files as files
from llm.train.load import load_model
from llm.train.run_folder import RunFolder

pytestmark = pytest.mark.multirank
WEIGHTS = files.weights_of(0)
Words = Callable[..., list[str]]


def start(words: list[str]) -> str:
    """One start of the program in this process: "step N", or the error's sentence."""
    from llm.train.start import pretrain

    try:
        return f"step {pretrain(words).step}"
    except BraidError as error:
        return f"{type(error).__name__}: {error}"


def stop_after(step: int) -> None:
    """From now on, this process gets SIGTERM when it has handed out the batch of that step."""
    from llm.data import Batches

    take = Batches.__next__

    def taking(self: Batches) -> Any:
        batches = take(self)
        if self.consumed == step * self.batch:
            os.kill(os.getpid(), signal.SIGTERM)
        return batches

    Batches.__next__ = taking  # type: ignore[method-assign]


def run_and_resume(rank: int, stages: list[int], words: list[str]) -> list[str]:
    """Per stage: an undisturbed run; one where rank 1 alone is asked to stop at step 10; and that one resumed."""
    from llm.data import Batches

    said, take = [], Batches.__next__
    for stage in stages:
        settings = [*words, f"parallel.zero={stage}", "train.checkpoint_every=5", "train.micro_batch=2"]
        said.append(start([*settings, f"name=whole{stage}"]))
        if rank == 1:
            stop_after(10)
        said.append(start([*settings, f"name=parts{stage}"]))
        Batches.__next__ = take  # type: ignore[method-assign]
        runs = next(word for word in words if word.startswith("runs=")).removeprefix("runs=")
        said.append(start([f"{runs}/parts{stage}"]))
    return said


def records(run: Path) -> list[dict[str, float]]:
    """What a run's metrics say of values, not of time or of what was sent."""
    timed = {"tokens_per_second", "mfu", "seconds_per_step", "data_wait", "checkpoint_stall"}
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in timed and not k.startswith("sent/")} for line in lines]


@pytest.mark.timeout(300)
def test_resuming_equals_not_stopping(words: Words, tmp_path: Path) -> None:
    stages = [0, 2, 3]
    for said in run_ranks(run_and_resume, 2, stages, words(), timeout=250):
        assert said == ["step 20", "step 10", "step 20"] * len(stages)
    for stage in stages:
        whole, parts = (tmp_path / "runs" / f"{name}{stage}" for name in ("whole", "parts"))
        assert len(records(whole)) == 20
        assert records(whole) == records(parts)
        (a, _, info), (b, _, other) = load_model(whole), load_model(parts)
        assert info.step == other.step == 20
        for (name, x), y in zip(a.named_parameters(), b.parameters(), strict=True):
            assert torch.equal(x, y), name
        for rank in range(2):
            a, b = (load_file(run / "checkpoints" / "step-20" / files.generators_of(rank)) for run in (whole, parts))
            assert torch.equal(a["cpu"], b["cpu"])
        # keep_last: 2
        assert [path.name for path in files.checkpoints(RunFolder(parts).checkpoints)] == ["step-20", "step-15"]


def damaged_starts(rank: int, words: list[str], run: Path) -> dict[str, Any]:
    """One process, one run: starts and restarts under every kind of damage."""
    from llm.train import checkpoint as reading
    from llm.train import save as writing
    from llm.train.exits import NAME, read_outcome
    from llm.train.metrics import Writer

    folder, said = RunFolder(run), {}
    said["first"] = start([*words, "train.steps=6", "train.checkpoint_every=2", "train.keep_last=3"])
    newest = folder.checkpoints / "step-6"
    victims = {"optimizer": files.optimizer_of(0), "weights": WEIGHTS, "progress": files.PROGRESS, "seal": files.FILES}
    backup = run.parent / "backup"
    shutil.copytree(newest, backup)
    for name, part in victims.items():
        for harm in (flip, truncate, Path.unlink):
            harm(newest / part)
            said[f"{name} {harm.__name__}"] = str(reading.newest_whole(folder.checkpoints, world_of_one())[0])
            shutil.rmtree(newest)
            shutil.copytree(backup, newest)
    said["restored"] = str(reading.newest_whole(folder.checkpoints, world_of_one())[0])
    flip(newest / WEIGHTS)
    said["resumed"] = start([str(run)])
    # a disk that fills up while the next run writes its second checkpoint
    save, calls = writing.save_file, []

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        calls.append(path)
        if len(calls) > 4:
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        save(tensors, path, metadata)

    writing.save_file = full
    other = [*words, "name=full", "train.steps=6", "train.checkpoint_every=2"]
    said["full"] = start(other)
    writing.save_file = save
    said["full kept"] = [path.name for path in files.checkpoints(run.parent / "full" / "checkpoints")]
    said["full leftovers"] = [path.name for path in (run.parent / "full" / "checkpoints").glob(".*")]
    said["full resumed"] = start(other)
    write = Writer.write
    Writer.write = full_records  # type: ignore[method-assign]
    said["full records"] = start([*words, "name=records", "train.steps=6"])
    Writer.write = write  # type: ignore[method-assign]
    said["full records told"] = str(read_outcome(run.parent / "records" / NAME))
    for checkpoint in files.checkpoints(folder.checkpoints):
        truncate(checkpoint / WEIGHTS)
    said["none whole"] = start([str(run)])
    return said


def full_records(writer: Any, record: dict[str, float]) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def world_of_one() -> Any:
    from llm.train.world import World

    return World(0, 1, torch.device("cpu"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_damage_falls_back_and_a_full_disk_costs_nothing(words: Words, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    run = tmp_path / "runs" / "tiny"
    said = run_ranks(damaged_starts, 1, words(), run, timeout=100)[0]
    assert said.pop("first") == "step 6"
    assert said.pop("restored").endswith("step-6")
    assert said.pop("resumed") == "step 6"
    assert f"step-6 is not whole (the content of {WEIGHTS} has changed)" in capfd.readouterr().out
    assert "No space left" in said["full"]
    assert "earlier ones are untouched" in said.pop("full")
    assert said.pop("full kept") == ["step-2"]
    assert said.pop("full leftovers") == []
    assert said.pop("full resumed") == "step 6"
    assert re.search("No space left.* after step 0; no checkpoint yet: make room", said.pop("full records"))
    assert "status=2" in said.pop("full records told")
    assert said.pop("none whole").startswith("CheckpointError: no checkpoint in")
    assert len(said) == 12
    for harm, fallback in said.items():
        assert fallback.endswith("step-4"), harm


def killed_while_saving(rank: int, words: list[str], where: str) -> None:
    """Rank 1 kills itself with -9 in the second checkpoint: before its files, or before their hashes."""
    from llm.train import save as writing

    module, name = {"write": (writing, "save_file"), "hash": (files, "seal")}[where]
    inner, folders = getattr(module, name), set()

    def dying(*args: Any) -> Any:
        folders.add(next(part for arg in args for part in str(arg).split("/") if part.startswith(".step-")))
        if rank == 1 and len(folders) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(*args)

    setattr(module, name, dying)
    start(words)


@pytest.mark.parametrize("where", ["write", "hash"])
def test_a_kill_while_saving_leaves_the_previous_checkpoint(where: str, words: Words, tmp_path: Path) -> None:
    settings = words("train.steps=6", "train.checkpoint_every=2", "parallel.zero=2")
    began = time.monotonic()
    with pytest.raises(AssertionError, match="rank"):
        run_ranks(killed_while_saving, 2, settings, where, timeout=60, connect=False)
    assert time.monotonic() - began < 55, "the surviving rank hung"
    run = tmp_path / "runs" / "tiny"
    assert [path.name for path in files.checkpoints(run / "checkpoints")] == ["step-2"]
    assert load_model(run)[2].step == 2
    assert (run / "checkpoints" / "latest").read_text() == "step-2\n"
