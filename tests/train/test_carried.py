"""Contiguous rows: the state goes on from step to step, over ranks, ZeRO stages, checkpoints and other numbers of ranks."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from llm.data import Batches, Manifest, TokenStream
from llm.errors import CheckpointError
from llm.model import Decoder
from llm.testing import run_ranks
from llm.train import checkpoint_files as files
from llm.train.carried import Carried
from llm.train.config import RunConfig, load_config
from llm.train.world import World
from tests.train.conftest import MODEL
from tests.train.test_resume import records, start

# no layer's state grows
WINDOWED = [*MODEL, "model.layers.a.mixer.window=8"]
# six rows on two ranks in micro-batches of two: the second one of each has a row of padding
ROWS = ["data.packing=contiguous", "train.batch=6", "train.micro_batch=2", "train.precision=fp32", "train.optimizer.lr=0.003"]


@pytest.fixture
def words(manifest: Manifest, tmp_path: Path):
    from tests.train.conftest import TRAIN

    return lambda *more: [*WINDOWED, *TRAIN, *ROWS, f"data.manifest={manifest.root}", f"runs={tmp_path / 'runs'}", *more]


def plain_losses(config: RunConfig, manifest: Manifest, carry: bool) -> list[float]:
    """The oracle: one loop, all rows at once, none of our training code beyond the schedule."""
    from llm.train.schedule import learning_rate

    model = Decoder.create(config.model, config.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.0)
    batches = Batches(TokenStream(manifest, "train", config.data, config.seed, config.train.batch), config.train.batch, 0, 1, 6)
    losses, state = [], None
    for step in range(1, config.train.steps + 1):
        (batch,) = next(batches)
        out = model(batch.tokens_BT, state, batch.docs, batch.labels_BT)
        state = {name: value.detach() for name, value in out.state.items()} if carry else None
        loss = out.loss_sum / batch.scored
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.train.clip or float("inf"))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config.train.schedule, config.train.optimizer.lr, step, config.train.steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    batches.close()
    return losses


def runs_of_two_ranks(rank: int, words: list[str]) -> list[str]:
    said = [start([*words, f"parallel.zero={stage}", f"name=zero{stage}"]) for stage in (0, 2, 3)]
    said.append(start([*words, "parallel.zero=0", "train.activation_checkpointing=true", "name=recomputed"]))
    # both ranks share every row, and have its whole state
    said.append(start([*words, "parallel.zero=1", "parallel.sequence=2", "name=split"]))
    return said


def losses_of(run: Path) -> list[float]:
    return [record["loss"] for record in records(run)]


@pytest.mark.multirank
@pytest.mark.timeout(300)
def test_states_go_on_over_ranks_and_stages(words, manifest: Manifest, tmp_path: Path) -> None:
    plain = words("train.optimizer.weight_decay=0")
    for said in run_ranks(runs_of_two_ranks, 2, plain, timeout=200):
        assert said == ["step 20"] * 5
    config = load_config(plain)
    carried, afresh = (plain_losses(config, manifest, carry) for carry in (True, False))
    assert max(abs(a - b) for a, b in zip(carried, afresh, strict=True)) > 1e-3
    for name in ("zero0", "zero2", "zero3", "recomputed", "split"):
        assert losses_of(tmp_path / "runs" / name) == pytest.approx(carried, rel=0, abs=2e-5), name


def two_starts(rank: int, words: list[str], runs: Path) -> list[str]:
    """A whole run, and one whose steps past 10 are lost and made again. What is saved is copied late: the update waits for it."""
    from llm.train.checkpoint_files import checkpoints, discard
    from llm.train.host_copy import HostCopy
    from llm.train.run_folder import RunFolder

    words = [*words, "train.checkpoint_every=10", "parallel.zero=2"]
    copy = HostCopy.of
    HostCopy.of = lambda *given: time.sleep(0.3) or copy(*given)  # type: ignore[method-assign]
    said = [start([*words, "name=whole"]), start([*words, "name=again"])]
    if rank == 0:
        discard(checkpoints(RunFolder(runs / "again").checkpoints)[0])
    return [*said, start([str(runs / "again")])]


@pytest.mark.multirank
def test_a_resumed_run_goes_on_bit_for_bit(words, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    for said in run_ranks(two_starts, 2, words(), runs, timeout=100):
        assert said == ["step 20"] * 3
    assert records(runs / "again") == records(runs / "whole")
    assert json.loads((runs / "again/checkpoints/step-20/progress.json").read_text())["data"]["consumed"] == 120


def fake(rows: list[list[int]]) -> Carried:
    """States that say whose they are."""
    carried = Carried([torch.tensor(part).numpy() for part in rows])
    for k, part in enumerate(rows):
        tensor = torch.tensor(part, dtype=torch.float32)
        carried.keep(k, {"layers.0.linear": tensor[:, None] + 0.5, "position": tensor.long() * 10})
    return carried


def world(rank: int) -> World:
    return World(rank, 9, torch.device("cpu"))


@pytest.mark.parametrize(
    "to", [[[[0, 1, 2, 3, 4, 5]]], [[[0], [1]], [[2], [3]], [[4], [5]]], [[[5, 0], [3, -1]], [[1, 2], [4, -1]]]]
)
def test_other_ranks_find_the_states_of_their_rows(to: list[Any], tmp_path: Path) -> None:
    for rank, rows in enumerate([[[0, 1], [2, -1]], [[3, 4], [5, -1]]]):
        save_file(fake(rows).tensors(), tmp_path / files.carried_of(rank))
    for rank, rows in enumerate(to):
        carried = Carried([torch.tensor(part).numpy() for part in rows])
        carried.load(tmp_path, world(rank))
        for part, state in zip(rows, carried.states, strict=True):
            assert state is not None
            for k, row in enumerate(part):
                assert state["layers.0.linear"][k].item() == (row + 0.5 if row >= 0 else 0.0)
                assert state["position"][k] == max(row, 0) * 10


def test_rows_that_were_not_saved_are_named(tmp_path: Path) -> None:
    save_file(fake([[0, 1]]).tensors(), tmp_path / files.carried_of(0))
    with pytest.raises(CheckpointError, match="holds no state of row 2 of the batch"):
        Carried([torch.tensor([1, 2]).numpy()]).load(tmp_path, world(0))
