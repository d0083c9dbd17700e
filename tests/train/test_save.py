"""Saving beside the training: what a step waits for, what a kill at any moment leaves, and how much memory reading back takes."""

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

from llm.data import Manifest
from llm.errors import CheckpointError
from llm.testing import run_ranks
from llm.train import checkpoint_files as files
from llm.train.checkpoint import newest_whole, pieces_of
from llm.train.config import RunConfig, load_config
from llm.train.fragments import Fragment, dealt
from llm.train.run_folder import RunFolder
from llm.train.save import Saver, write
from llm.train.shards import Pieces, Wanted, fill, state_shard, states_of, weight_shard, weights_of
from llm.train.world import World

pytestmark = pytest.mark.multirank
Words = Callable[..., list[str]]
KILLS = 16
ALONE = World(0, 1, torch.device("cpu"))


@pytest.fixture
def run(words: Words, manifest: Manifest) -> RunConfig:
    """The config of a run whose folder is there."""
    config = load_config(words())
    RunFolder.of(config).write(config, manifest)
    return config


def held(parameters: int, value: float = 1.0, matrices: int = 6) -> list[Fragment]:
    """Stand-ins for what an engine holds under AdamW: 12 bytes per parameter."""
    shape = (parameters // matrices,)
    return [
        Fragment(
            f"m{k}", shape, 0, torch.full(shape, value), {key: torch.full(shape, -value) for key in ("a", "b")}, {"step": [value]}
        )
        for k in range(matrices)
    ]


def test_training_waits_for_a_tenth_of_a_save_at_most(run: RunConfig) -> None:
    saver, parts = Saver(RunFolder.of(run), run, ALONE), held(12_000_000)
    waits: dict[bool, list[float]] = {True: [], False: []}
    for step in range(1, 9):
        waited = step % 2 == 0
        saver.save(parts, step, {}, last=waited)
        # forward and backward
        time.sleep(0.3)
        saver.copied()
        waits[waited].append(saver.stall()["checkpoint_stall"])
        saver.finish()
    saver.close()
    assert median(waits[False]) <= 0.1 * median(waits[True]), waits
    assert [path.name for path in files.checkpoints(RunFolder.of(run).checkpoints)] == ["step-8", "step-7"]


def test_the_copy_is_of_the_moment_and_every_nth_is_kept(run: RunConfig) -> None:
    from dataclasses import replace

    config = replace(run, train=replace(run.train, keep_last=1, checkpoint_every=1, keep_every=3))
    folder, parts = RunFolder.of(run), held(60_000)
    saver = Saver(folder, config, ALONE)
    for step in range(1, 6):
        for part in parts:
            part.weight.fill_(step)
        saver.save(parts, step, {"consumed": step})
        saver.copied()
        for part in parts:
            part.weight.fill_(torch.nan)
    while saver.votes() == (False, False):
        time.sleep(0.01)
    # nothing has a name before all have agreed
    assert [path.name for path in files.checkpoints(folder.checkpoints)] == ["step-4", "step-3"]
    saver.settle(*map(int, saver.votes()))
    saver.finish()
    saver.close()
    assert [path.name for path in files.checkpoints(folder.checkpoints)] == ["step-5", "step-3"]
    assert content(folder.checkpoints / "step-3") == {3.0}


def test_a_failure_in_the_thread_is_agreed_on_and_costs_that_checkpoint_alone(run: RunConfig) -> None:
    folder, parts = RunFolder.of(run), held(600)
    saver = Saver(folder, run, ALONE)
    saver.save(parts, 1, {}, last=True)
    (folder.checkpoints / ".step-2.tmp").write_text("in the way")
    saver.save(parts, 2, {})
    while saver.votes() == (False, False):
        time.sleep(0.01)
    assert saver.votes() == (False, True)
    with pytest.raises(
        CheckpointError, match=r"step-2 cannot be written .* earlier ones are untouched: make room, then resume with"
    ):
        saver.settle(*map(int, saver.votes()))
    saver.close()
    assert newest_whole(folder.checkpoints, ALONE)[0] == folder.checkpoints / "step-1"


def content(checkpoint: Path) -> set[float]:
    """The values that its weights have."""
    pieces = pieces_of(checkpoint, files.WEIGHTS, ALONE)
    targets = {key: torch.full(shape, torch.nan) for key, shape in pieces.shapes.items()}
    fill(pieces, [Wanted(key, 0, target) for key, target in targets.items()])
    return {value for target in targets.values() for value in target.unique().tolist()}


def forked(function: Callable[..., None], *args: Any) -> int:
    """A copy of this process, which has no other threads, that does this alone."""
    child = os.fork()
    if not child:
        try:
            function(*args)
        finally:
            os._exit(0)
    return child


def saves_for_ever(config: RunConfig, step: int) -> None:
    saver, parts = Saver(RunFolder.of(config), config, ALONE), held(600_000)
    while True:
        step += 1
        for part in parts:
            part.weight.fill_(step)
        saver.save(parts, step, {})
        saver.copied()


def killed(rank: int, config: RunConfig, seed: int) -> list[str]:
    """Kill a process that saves without end, again and again, and go on from what it left; what was wrong with that."""
    chance, wrong, newest = random.Random(seed), [], 0
    folder = RunFolder.of(config).checkpoints
    for kill in range(KILLS):
        child = forked(saves_for_ever, config, newest)
        moment = chance.uniform(0.02, 0.5)
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = files.checkpoints(folder)
        if not found:
            continue
        reached = files.step_of(found[0])
        where = f"kill {kill} after {moment:.3f} s, seed {seed}, step {reached}"
        if files.damage(found[0]) or content(found[0]) != {float(reached)} or reached < newest:
            wrong.append(f"{where}: {files.damage(found[0])}, {content(found[0])}")
        if not (folder / files.LATEST).is_file() or int((folder / files.LATEST).read_text().split("-")[1]) not in (
            reached,
            reached - 1,
        ):
            wrong.append(f"{where}: latest")
        newest = reached
    return [*wrong, f"{newest > KILLS // 4}"]


def test_a_kill_at_any_moment_leaves_the_newest_whole(run: RunConfig) -> None:
    assert run_ranks(killed, 1, run, 7, timeout=100, connect=False) == [["True"]]


def memory(function: Callable[[], Any]) -> int:
    """By how many bytes the resident memory of a process grows at most while it runs this."""
    reading, writing = os.pipe()

    def measured() -> None:
        before = resident("VmRSS")
        kept = function()
        os.write(writing, str(resident("VmHWM") - before).encode())
        del kept

    child = forked(measured)
    os.waitpid(child, 0)
    return int(os.read(reading, 99))


def resident(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return 1024 * int(line.split()[1])


def reading(rank: int, folder: Path) -> tuple[int, int]:
    """Memory that a rank of two takes to read what three wrote, over its shard; and that the whole weights take, over theirs."""
    parts = held(24_000_000)
    for writer in range(3):
        share = dealt(parts, writer, 3)
        write(folder, {files.weights_of(writer): weight_shard(share), files.optimizer_of(writer): state_shard(share)}, {})
    layout = [(part.name, part.shape, part.start, len(part.weight)) for part in dealt(parts, 1, 2)]
    del parts, share

    def shard() -> list[Fragment]:
        mine = [Fragment(n, s, k, torch.empty(c), {key: torch.empty(c) for key in ("a", "b")}, {}) for n, s, k, c in layout]
        names = [[f(writer) for writer in range(3)] for f in (files.weights_of, files.optimizer_of)]
        fill(Pieces.merged([Pieces.read(folder, names[0])]), weights_of(mine))
        fill(Pieces.merged([Pieces.read(folder, names[1])]), states_of(mine))
        assert all((part.weight == 1).all() and (part.state["b"] == -1).all() for part in mine)
        return mine

    def model() -> list[torch.Tensor]:
        pieces = Pieces.merged([Pieces.read(folder, [files.weights_of(writer) for writer in range(3)])])
        tensors = {key: torch.empty(shape) for key, shape in pieces.shapes.items()}
        fill(pieces, [Wanted(key, 0, tensor) for key, tensor in tensors.items()])
        return list(tensors.values())

    return memory(shard), memory(model)


def test_reading_takes_less_than_twice_the_memory_of_what_is_read(tmp_path: Path) -> None:
    ((shard, model),) = run_ranks(reading, 1, tmp_path, timeout=100, connect=False)
    assert 12 * 12_000_000 < shard < 2 * 12 * 12_000_000
    # the weights, one of their three files, and what any code takes
    assert 4 * 24_000_000 < model < 4 * 24_000_000 + 4 * 8_000_000 + (16 << 20)
