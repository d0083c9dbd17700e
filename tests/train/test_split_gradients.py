"""Four ranks as 2 x 2 have the gradient itself of one rank, not only its losses: AdamW would hide a wrong scale.

DeepSpeed is told nothing of the ranks that share sequences (no `mpu`): it averages over all ranks, and each has the loss of its own
tokens. So every stage, accumulation and precision is held to the gradient of one rank before clipping, and clips as one rank does.
"""

from typing import Any

import pytest
import torch

from llm.data import Batch
from llm.docs import Docs
from llm.init import cast_model
from llm.model import Decoder
from llm.testing import run_ranks
from llm.train.config import RunConfig, build_config

pytestmark = [pytest.mark.multirank, pytest.mark.timeout(300)]
RANKS, STEPS, ROWS, T, VOCABULARY, CLIP = 4, 3, 8, 48, 61, 0.5
LAYERS = {
    "r": {"mixer": {"kind": "retention", "heads": 2}, "ffn": "swiglu"},
    "a": {"mixer": {"kind": "attention", "heads": 4, "kv_heads": 2, "qk_norm": True}, "ffn": "swiglu"},
    "w": {"mixer": {"kind": "attention", "heads": 4, "window": 9}, "ffn": {"kind": "none"}},
    "m": {"mixer": {"kind": "mamba2", "heads": 4, "state": 8}, "ffn": {"kind": "none"}},
    # one head, which two ranks cannot divide
    "s": {"mixer": {"kind": "slstm", "heads": 1}, "ffn": {"kind": "none"}},
}


def config_of(zero: int, micro_batch: int, precision: str = "fp32", **train: Any) -> RunConfig:
    # bf16 changes retention's gradient beyond comparing: the group norm of a document's first token turns on the sign of q k
    names = [name for name in LAYERS if precision == "fp32" or name != "r"]
    layers = {name: LAYERS[name] for name in names}
    return build_config(
        {
            "name": "split",
            "model": {"width": 32, "depth": len(names), "vocab_size": VOCABULARY, "layers": layers, "pattern": names},
            "data": {"manifest": "-", "sequence_length": T},
            "train": {
                "steps": 20,
                "batch": ROWS,
                "micro_batch": micro_batch,
                "clip": CLIP,
                "precision": precision,
                "optimizer": {"lr": 1e-3},
                "schedule": {"warmup": 5},
                **train,
            },
            "parallel": {"zero": zero, "sequence": 2},
        }
    )


def batch_of(step: int) -> Batch:
    """All rows of a step: documents that straddle the cut, rows of which another share is scored."""
    generator = torch.Generator().manual_seed(step)
    tokens = torch.randint(VOCABULARY, (ROWS, T), generator=generator)
    unscored = torch.rand(ROWS, T, generator=generator) < torch.tensor([0, 0.1, 0.9, 0.5, 0, 1, 0.97, 0.2])[:, None]
    starts = torch.rand(ROWS, T, generator=generator) < 0.05
    return Batch(tokens, ((3 * tokens + 1) % VOCABULARY).masked_fill(unscored, -100), Docs(starts))


def one_rank(config: RunConfig, precision: str = "fp32") -> dict[str, Any]:
    """The oracle: a plain loop. Gradients are those of the first step; in bf16 as the engine keeps weights at that stage."""
    model = Decoder.create(config.model, config.seed)
    if precision == "bf16" and config.parallel.zero < 3:
        cast_model(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    found: dict[str, Any] = {"losses": [], "norms": []}
    for step in range(1, STEPS + 1):
        batch = batch_of(step)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16" and config.parallel.zero == 3):
            loss = model(batch.tokens_BT, None, batch.docs, batch.labels_BT).loss_sum / batch.scored
        loss.backward()
        found.setdefault("gradients", {name: p.grad.float().clone() for name, p in model.named_parameters()})
        found["norms"].append(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP).item())
        optimizer.step()
        optimizer.zero_grad()
        found["losses"].append(loss.item())
    return found


def steps_of(rank: int, config: RunConfig) -> dict[str, Any]:
    """The same steps by the engine on this rank's tokens."""
    from deepspeed.utils import safe_get_full_grad

    from llm.train.engine import create_engine, optimizer_step
    from llm.train.grid import place, sequence_ranks
    from llm.train.world import World

    world = World(rank, RANKS, torch.device("cpu"))
    engine = create_engine(config, world, sequence_ranks(config, world))
    found: dict[str, Any] = {"losses": [], "norms": []}
    step_of_engine = engine.step

    def step_and_look() -> None:
        if engine.is_gradient_accumulation_boundary() and config.parallel.zero and "gradients" not in found:
            named = engine.module.decoder.named_parameters()
            found["gradients"] = {name: safe_get_full_grad(p).float().clone() for name, p in named}
        step_of_engine()

    engine.step = step_and_look
    reader, part = place(config, world)
    for group in engine.optimizer.param_groups:
        group["weight_decay"] = 0.0
    for step in range(1, STEPS + 1):
        share = batch_of(step).split(ROWS // 2)[reader]
        micro_batches = [micro.part(*part) for micro in share.split(config.train.micro_batch or 1)]
        result = optimizer_step(engine, micro_batches, 1e-3, config.train.clip, world)
        found["losses"].append((world.sum(result.loss_sum) / result.scored).item())
        found["norms"].append(float(result.grad_norm))
    engine.destroy()
    return found


def all_of_them(rank: int, configs: list[RunConfig]) -> list[dict[str, Any]]:
    from llm.train.start import quiet
    from llm.train.world import World

    quiet()
    World(rank, RANKS, torch.device("cpu")).connect()
    return [steps_of(rank, config) for config in configs]


def difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Of two gradients, relative in Frobenius norm, over all parameters."""
    assert ours.keys() == theirs.keys()
    apart = sum((ours[name] - theirs[name]).square().sum() for name in theirs)
    return float((apart / sum(g.square().sum() for g in theirs.values())).sqrt())


FEW = [config_of(1, 1), config_of(2, 4), config_of(3, 1, activation_checkpointing=True)]
MORE = [config_of(0, 1), config_of(0, 4), config_of(1, 4), config_of(2, 1), config_of(3, 4)]
BF16 = [config_of(zero, micro, "bf16") for zero in (1, 2, 3) for micro in (4, 1)]


@pytest.mark.parametrize("configs", [FEW, pytest.param([*MORE, *BF16], marks=pytest.mark.slow)], ids=["few", "more"])
def test_the_gradient_of_a_grid_is_that_of_one_rank(configs: list[RunConfig]) -> None:
    for config, found in zip(configs, run_ranks(all_of_them, RANKS, configs, timeout=280)[0], strict=True):
        oracle = one_rank(config)
        assert min(oracle["norms"]) > CLIP
        what = f"ZeRO {config.parallel.zero}, {config.train.precision}, micro-batch {config.train.micro_batch}"
        if config.train.precision == "bf16":
            # one rank's own rounding, twice
            noisy = one_rank(config, "bf16")
            noise = difference(noisy["gradients"], oracle["gradients"])
            assert 1e-3 < noise < 0.05, noise
            assert difference(found["gradients"], oracle["gradients"]) <= 2 * noise, what
            assert found["losses"] == pytest.approx(oracle["losses"], rel=0, abs=0.02), what
            continue
        assert found["losses"] == pytest.approx(oracle["losses"], rel=0, abs=1e-5), what
        assert found["norms"] == pytest.approx(oracle["norms"], rel=1e-4), what
        if config.parallel.zero:
            assert difference(found["gradients"], oracle["gradients"]) <= 1e-5, what
