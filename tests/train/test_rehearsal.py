"""The peak that a rehearsal predicts from the config is what real ranks hold, tensor by tensor."""

from typing import Any

import pytest
import torch

from llm.data import Batch
from llm.docs import Docs
from llm.testing import run_ranks
from llm.train.config import RunConfig, accumulation_of, build_config, micro_batch_of
from llm.train.memory import LiveBytes
from llm.train.rehearsal import rehearse

pytestmark = pytest.mark.timeout(600)
RANKS, T, VOCABULARY = 2, 256, 1024
LAYERS = {
    "r": {"mixer": {"kind": "retention", "heads": 4}, "ffn": "swiglu"},
    "a": {"mixer": {"kind": "attention", "heads": 4, "kv_heads": 2}, "ffn": "swiglu"},
    "m": {"mixer": {"kind": "mamba2", "heads": 8, "state": 32}, "ffn": {"kind": "none"}},
}


def config_of(zero: int, precision: str = "fp32", sequence: int = 1, micro_batch: int | None = None, **train: Any) -> RunConfig:
    return build_config(
        {
            "name": "rehearsed",
            "model": {"width": 192, "depth": 4, "vocab_size": VOCABULARY, "layers": LAYERS, "pattern": list(LAYERS)},
            "data": {"manifest": "-", "sequence_length": T},
            "train": {
                "steps": 20,
                "batch": 4,
                "micro_batch": micro_batch,
                "precision": precision,
                "schedule": {"warmup": 5},
                **train,
            },
            "parallel": {"zero": zero, "sequence": sequence},
        }
    )


def held(rank: int, config: RunConfig) -> int:
    """The most bytes of this rank's tensors in its second step and third step; in the first, AdamW has no moments."""
    from llm.train.engine import create_engine, optimizer_step
    from llm.train.grid import place, sequence_ranks
    from llm.train.world import World

    world = World(rank, RANKS, torch.device("cpu"))
    rows = micro_batch_of(config, RANKS)
    with LiveBytes() as live:
        engine = create_engine(config, world, sequence_ranks(config, world))
        starts = torch.zeros(rows, T, dtype=torch.bool)
        starts[:, ::128] = True
        batch = Batch(torch.ones(rows, T, dtype=torch.long), torch.ones(rows, T, dtype=torch.long), Docs(starts))
        for step in range(3):
            if step == 1:
                live.restart()
            micro_batches = [batch.part(*place(config, world)[1])] * accumulation_of(config, RANKS)
            optimizer_step(engine, micro_batches, 1e-3, 1.0, world)
    engine.destroy()
    return live.peak


def all_of_them(rank: int, configs: list[RunConfig]) -> list[int]:
    from llm.train.start import quiet
    from llm.train.world import World

    quiet()
    World(rank, RANKS, torch.device("cpu")).connect()
    return [held(rank, config) for config in configs]


FEW = [config_of(1, sequence=2, micro_batch=1), config_of(2, "bf16"), config_of(3, activation_checkpointing=True)]
MORE = [
    config_of(zero, precision, sequence, micro_batch, activation_checkpointing=recompute)
    for zero in (0, 1, 2, 3)
    for precision in (("fp32", "bf16") if zero else ("fp32",))
    for sequence, micro_batch, recompute in ((1, None, False), (1, 1, True), (2, 1, False))
]


@pytest.mark.multirank
@pytest.mark.parametrize("configs", [FEW, pytest.param(MORE, marks=pytest.mark.slow)], ids=["few", "more"])
def test_a_rank_holds_what_was_predicted(configs: list[RunConfig]) -> None:
    by_rank = run_ranks(all_of_them, RANKS, configs, timeout=550)
    ratios = {}
    for config, *measured in zip(configs, *by_rank, strict=True):
        parallel, train = config.parallel, config.train
        name = f"ZeRO {parallel.zero}, {train.precision}, sequence {parallel.sequence}, micro-batch {train.micro_batch}"
        name += ", checkpointing" * train.activation_checkpointing
        ratios[name] = rehearse(config, RANKS).peak.total / max(measured)
        print(f"{name}: {ratios[name]:.3f}")
    assert all(0.85 <= ratio <= 1.15 for ratio in ratios.values()), ratios


def test_layers_are_stacked_on_paper() -> None:
    """Twice the layers: twice their activations, gradients and weights; the rest stays."""
    found = {}
    for depth in (3, 6, 9):
        config = config_of(1)
        model = config.model.__class__(**{**vars(config.model), "depth": depth})
        found[depth] = vars(rehearse(config.__class__(**{**vars(config), "model": model}), RANKS).peak)
    for name in ("parameters", "optimizer", "activations"):
        assert found[9][name] - found[6][name] == pytest.approx(found[6][name] - found[3][name], rel=1e-6, abs=64), name
    assert found[3]["at_work"] == found[6]["at_work"] == found[9]["at_work"]


def test_tensors_count_while_they_live() -> None:
    with LiveBytes() as live:
        x = torch.zeros(1000)
        y = x.view(10, 100)[2:]
        assert live.now == live.peak == 4000
        z = y + 1
        del x
        # a view keeps all of its storage
        assert live.now == 4000 + 3200
        del y
        assert (live.now, live.peak) == (3200, 7200)
        live.restart()
        z.add_(1)
        assert live.peak == 3200
        torch.zeros(1 << 20, device="meta")
        assert live.peak == 3200
