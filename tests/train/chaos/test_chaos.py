"""Whatever hits a run, it ends as an undisturbed one: same data, same weights and optimizer, to the bit. Long: `make chaos`."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.train.chaos import laws
from tests.train.chaos.plan import Hit, draw, every_place
from tests.train.chaos.run import Chaos, small_disk

pytestmark = pytest.mark.multirank
Words = Callable[..., list[str]]
SEED = int(os.environ.get("BRAID_CHAOS_SEED", "1"))
# states of every kind, carried from step to step, and noise on the gradients
BRAID = [
    "model.depth=3",
    "model.layers.a.mixer.window=16",
    "model.layers.m.mixer.kind=mamba2",
    "model.layers.m.mixer.heads=2",
    "model.layers.m.mixer.state=8",
    "model.layers.m.ffn.kind=swiglu",
    "model.pattern=[r,m,a]",
    "data.packing=contiguous",
    "train.optimizer.gradient_noise=0.01",
    "train.micro_batch=2",
    "train.checkpoint_every=4",
]


def endure(chaos: Chaos, hits: list[Hit]) -> None:
    with small_disk(chaos.runs, megabytes=32) as mounted:
        print(
            f"\nseed {SEED}, {len(hits)} hits, {chaos.ranks} ranks, {'a disk of its own' if mounted else 'a full disk is feigned'}"
        )
        chaos.undisturbed()
        chaos.disturbed(hits)
        print(laws.table(chaos))
        laws.all_hits_happened(chaos)
        laws.same_data(chaos)
        laws.same_end(chaos)
        laws.nothing_is_left(chaos)


@pytest.mark.timeout(700)
def test_a_few_hits(words: Words, tmp_path: Path) -> None:
    kinds = [("backward", "kill launcher"), ("rename", "kill rank")]
    settings = words(*BRAID, "parallel.zero=2", "train.steps=40")
    endure(Chaos(tmp_path, settings, 2, seconds=600), draw(SEED, 2, kinds))


@pytest.mark.slow
@pytest.mark.timeout(4000)
def test_every_kind_in_every_place(words: Words, tmp_path: Path) -> None:
    kinds = every_place(SEED)
    settings = words(*BRAID, "parallel.zero=2", f"train.steps={12 * len(kinds)}", "train.hang_minutes=0.4")
    endure(Chaos(tmp_path, settings, 2, seconds=3600), draw(SEED, 2, kinds))


@pytest.mark.slow
@pytest.mark.timeout(4000)
def test_four_ranks(words: Words, tmp_path: Path) -> None:
    """Under ZeRO 3, whose parameters are spread over the ranks; a hit in each place."""
    kinds = [("write", "full disk"), ("latest", "flip"), ("update", "kill launcher"), ("backward", "kill rank")]
    kinds += [("forward", "stall"), ("rename", "kill rank"), ("read", "term rank")]
    settings = words(*BRAID, "data.packing=bestfit", "parallel.zero=3", f"train.steps={12 * len(kinds)}", "train.hang_minutes=0.5")
    endure(Chaos(tmp_path, settings, 4, seconds=3600), draw(SEED, 4, kinds))
