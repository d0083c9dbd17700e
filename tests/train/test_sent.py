"""What a run's records say was sent is what a rehearsal predicts from its config alone, to the byte."""

from typing import Any

import pytest
import torch

from llm.cost import model_cost
from llm.data import Batch
from llm.docs import Docs
from llm.mixers import MIXERS
from llm.testing import run_ranks
from llm.train.config import RunConfig, accumulation_of, build_config, micro_batch_of
from llm.train.laws import check_ranks
from llm.train.rehearsal import rehearse

pytestmark = [pytest.mark.multirank, pytest.mark.timeout(600)]
RANKS, VOCABULARY, T = 2, 61, 64
# heads that two ranks divide; every setting that adds an op
SETTINGS: dict[str, dict[str, Any]] = {
    "attention": {"heads": 4, "kv_heads": 2},
    "mamba": {},
    "mamba2": {"heads": 4, "state": 8, "groups": 2},
}
MORE = {
    "window": {"kind": "attention", "heads": 4, "window": 9},
    "mac": {"kind": "titans", "heads": 2, "variant": "mac", "chunk": 16},
}
LAYERS = {kind: {"kind": kind, **SETTINGS.get(kind, {"heads": 2})} for kind in MIXERS} | MORE
# whose recurrence is affine in its state, or which have none
AFFINE = [name for name in LAYERS if name not in ("slstm", "lstm", "gru", "titans", "mac")]


def config_of(names: list[str], mode: str, **train: Any) -> RunConfig:
    layers = {name: {"mixer": LAYERS[name], "ffn": {"kind": "none"}} for name in names}
    zero = train.pop("zero", 1)
    values = {
        "name": "sent",
        "model": {"width": 32, "depth": len(names), "vocab_size": VOCABULARY, "layers": layers, "pattern": names},
        "data": {"manifest": "-", "sequence_length": T},
        "train": {"steps": 20, "batch": 4, "micro_batch": 2, "precision": "fp32", "schedule": {"warmup": 5}, **train},
        "parallel": {"zero": zero, "sequence": RANKS, "mode": mode},
    }
    return build_config(values)


def two_steps(rank: int, config: RunConfig) -> dict[str, float]:
    """The record's part of two steps on this rank."""
    from llm.train.engine import create_engine, optimizer_step
    from llm.train.grid import place, sequence_ranks
    from llm.train.sent import Sent
    from llm.train.world import World

    world = World(rank, RANKS, torch.device("cpu"))
    ranks = sequence_ranks(config, world)
    engine, sent = create_engine(config, world, ranks), Sent(world, ranks)
    rows = micro_batch_of(config, RANKS)
    starts = torch.zeros(rows, T, dtype=torch.bool)
    starts[:, ::21] = True
    whole = Batch(torch.ones(rows, T, dtype=torch.long), torch.ones(rows, T, dtype=torch.long), Docs(starts))
    for _ in range(2):
        with sent:
            batches = [whole.part(*place(config, world)[1])] * accumulation_of(config, RANKS)
            optimizer_step(engine, batches, 1e-3, 1.0, world)
    engine.destroy()
    return sent.read()


def all_of_them(rank: int, configs: list[RunConfig]) -> list[dict[str, float]]:
    from llm.train.start import quiet
    from llm.train.world import World

    quiet()
    World(rank, RANKS, torch.device("cpu")).connect()
    return [two_steps(rank, config) for config in configs]


ALL = list(LAYERS)
BRAIDS = {"auto": config_of(ALL, "auto")}
MORE_BRAIDS = {
    "state, checkpointing": config_of(AFFINE, "state", activation_checkpointing=True),
    "heads": config_of(ALL, "heads"),
    "pipelined": config_of(ALL, "pipelined"),
    "bf16": config_of(ALL, "auto", precision="bf16"),
    "bf16, ZeRO 3": config_of(ALL, "auto", precision="bf16", zero=3),
    "heads, checkpointing": config_of(ALL, "heads", activation_checkpointing=True),
}
ONE_EACH = {
    f"{name}, {mode}": config_of([name], mode)
    for mode in ("auto", "heads", "state")
    for name in (AFFINE if mode == "state" else ALL)
}


@pytest.mark.parametrize(
    "configs",
    [BRAIDS, pytest.param(MORE_BRAIDS, marks=pytest.mark.slow), pytest.param(ONE_EACH, marks=pytest.mark.slow)],
    ids=["braids", "more", "each"],
)
def test_what_is_sent_was_predicted(configs: dict[str, RunConfig]) -> None:
    for config in configs.values():
        check_ranks(config, RANKS)
    by_rank = run_ranks(all_of_them, RANKS, list(configs.values()), timeout=280)
    assert by_rank[0] == by_rank[1]
    for (name, config), record in zip(configs.items(), by_rank[0], strict=True):
        found = {key.split("/")[2]: n for key, n in record.items() if key.startswith("sent/sequence/") and key.endswith("/bytes")}
        predicted = rehearse(config, RANKS).sent
        assert {c: n for c, n in found.items() if n} == {c: n for c, n in predicted.items() if n}, name
        if config.parallel.zero == 1 and config.train.precision == "fp32":
            # a step reduces every gradient and gathers every weight once, beside a few numbers
            parameters = model_cost(config.model, T).parameters
            gradients, weights = (record[f"sent/zero/{name}/bytes"] for name in ("all_reduce", "all_gather"))
            assert gradients == pytest.approx(2 * (RANKS - 1) * 4 * parameters, rel=0.05)
            assert weights == pytest.approx(RANKS * (RANKS - 1) * 4 * parameters / RANKS, rel=0.05)
