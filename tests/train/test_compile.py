"""Blocks through `torch.compile` train as they do without: losses and every gradient, nothing compiled anew from step to step."""

import contextlib
import inspect
import shutil
from collections.abc import Iterator

import pytest
import torch

from llm.compile import OPS, check_compiler, compile_blocks
from llm.config import build
from llm.docs import Docs
from llm.errors import ConfigError
from llm.model import Decoder, ModelConfig, model_kinds
from llm.sequence import Seq
from llm.testing import run_ranks
from llm.train.config import load_config
from llm.train.laws import check_ranks
from tests.train.test_zero import RANKS, config_of, train_cases

LAYERS = {
    "a": {"mixer": {"kind": "attention", "heads": 4, "kv_heads": 2, "qk_norm": True}, "ffn": "swiglu"},
    "x": {"mixer": {"kind": "mlstm", "heads": 2}, "ffn": "swiglu"},
    "m": {"mixer": {"kind": "mamba"}, "ffn": "none"},
    "s": {"mixer": {"kind": "slstm", "heads": 2}, "ffn": "swiglu"},
    "t": {"mixer": {"kind": "titans", "heads": 2}, "ffn": "swiglu"},
}
T = 40


def model_of(names: str, width: int = 16) -> Decoder:
    layers = {name: LAYERS[name] for name in names}
    settings = {"width": width, "depth": 2 * len(names), "vocab_size": 31, "layers": layers, "pattern": list(names)}
    return Decoder.create(build(ModelConfig, settings, model_kinds("")), seed=0)


def gradients(model: Decoder, seed: int) -> dict[str, torch.Tensor]:
    """Of a step over packed documents that differ from seed to seed; and the loss."""
    generator = torch.Generator().manual_seed(seed)
    tokens, labels = torch.randint(31, (2, 2, T), generator=generator)
    starts = torch.rand(2, T, generator=generator) < 0.1
    model.zero_grad()
    loss = model(tokens, None, Docs(starts), labels).loss_sum / labels.numel()
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()} | {"loss": loss.detach()}


def distances(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> dict[str, float]:
    """Relative; a gradient that should be 0 (of a gauge) to the largest."""
    least = 1e-4 * max(x.norm() for x in want.values())
    return {name: ((got[name] - x).norm() / x.norm().clamp(min=least)).item() for name, x in want.items()}


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """Afresh, and what it changes is undone."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(recompile_limit=8):
        yield


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore:The .grad attribute:UserWarning")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("again", [False, True], ids=["kept", "checkpointing"])
@pytest.mark.parametrize("names", ["a", "axm", "st"])
def test_compiled_blocks_have_the_same_gradients(names, again):
    plain, model, exact = model_of(names), model_of(names), model_of(names).double()
    model.checkpoint_activations = again
    with compiling():
        compile_blocks(model)
        for step in range(4):
            truth = gradients(exact, step)
            ours, others = (distances(gradients(m, step), truth) for m in (model, plain))
            # together as exact as without, and none that is another gradient
            assert sum(ours.values()) <= 2 * sum(others.values())
            assert max(ours.values()) <= 1e-3, ours
            if step == 1:
                made = graphs()
                assert made >= 2 * len(names)
        assert graphs() == made


@pytest.mark.slow
@pytest.mark.multirank
@pytest.mark.timeout(600)
@pytest.mark.parametrize("settings", [{}, {"activation_checkpointing": True}], ids=["kept", "checkpointing"])
def test_deepspeed_trains_compiled_blocks(settings):
    """ZeRO 1 on two ranks, two micro-batches."""
    configs = [config_of(1, 2, steps=3, compile_blocks=compiled, **settings) for compiled in (False, True)]
    plain, compiled = run_ranks(train_cases, RANKS, configs, timeout=500)[0]
    assert compiled["losses"] == pytest.approx(plain["losses"], rel=1e-5)
    assert compiled["norms"] == pytest.approx(plain["norms"], rel=1e-5)
    for name, weight in compiled["weights"].items():
        assert (weight - plain["weights"][name]).abs().max() < 1e-4, name


def test_every_op_over_time_is_left_alone():
    """A rotation is none: positions are read before."""
    methods = {name for name, value in vars(Seq).items() if inspect.isfunction(value) and not name.startswith("_")}
    assert methods - {"rotary"} == set(OPS)


def test_gathered_weights_are_refused():
    config = load_config(["configs/exp/tiny.yaml", "train.compile_blocks=true", "parallel.zero=3"])
    with pytest.raises(ConfigError, match=r"train\.compile_blocks \(true\).*parallel\.zero \(3\).*use parallel\.zero=1"):
        check_ranks(config, 1)


def test_a_missing_compiler_is_named(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"train.compile_blocks needs a C\+\+ compiler"):
        check_compiler("train.compile_blocks", torch.device("cpu"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="triton is not installed"):
        check_compiler("train.compile_blocks", torch.device("cuda"))
