"""Elastic resume: what some ranks saved, others go on from — the same curve, data, masters and moments, to the bit."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from llm.data import Batches
from llm.testing import run_ranks
from llm.train.load import load_model
from tests.train.conftest import VOCABULARY
from tests.train.test_resume import records, start

pytestmark = [pytest.mark.multirank, pytest.mark.timeout(800)]
Words = Callable[..., list[str]]
WEIGHT = "weight"
# (ranks, last step, ZeRO stage, ranks of a sequence)
SHORT = [(2, 10, 3, 1), (3, 20, 2, 1)]
LONG = [(4, 5, 3, 1), (2, 10, 2, 1), (1, 15, 0, 1), (4, 20, 1, 2)]
TAKE = Batches.__next__


def whole_tensors(checkpoint: Path) -> dict[str, dict[str, torch.Tensor]]:
    """Parameter -> its weight and states, put together by safetensors alone."""
    whole: dict[str, dict[str, torch.Tensor]] = {}
    for path in [*checkpoint.glob("weights/*"), *checkpoint.glob("optimizer/*")]:
        with safe_open(path, "pt") as file:
            for key, (start_, shape) in json.loads(file.metadata()["slices"]).items():
                part, (state, _, name) = file.get_tensor(key), key.rpartition("/")
                flat = whole.setdefault(name, {}).setdefault(state or WEIGHT, torch.full(shape, torch.nan)).view(-1)
                flat[start_ : start_ + len(part)] = part
    return whole


def gathered(engine: Any, keys: dict[str, list[str]]) -> dict[str, dict[str, torch.Tensor]]:
    """The same of a running engine, by DeepSpeed: of each parameter the weight and these states. All ranks call it together."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    found = {}
    if engine.zero_optimization_stage() == 0:
        state = engine.optimizer.state
        return {
            name: {WEIGHT: p, **{key: state[p][key] for key in keys[name]}} for name, p in engine.module.decoder.named_parameters()
        }
    for name, parameter in engine.module.decoder.named_parameters():
        found[name] = {key: safe_get_full_optimizer_state(parameter, key) for key in keys[name]}
        found[name][WEIGHT] = safe_get_full_fp32_param(parameter)
    return {name: {key: value.clone() for key, value in values.items()} for name, values in found.items()}


def watch(stop: int | None) -> dict[int, torch.Tensor]:
    """From now on: step -> how often each label was in its batch on this rank; and this process gets SIGTERM at step `stop`."""
    seen: dict[int, torch.Tensor] = {}

    def taking(self: Batches) -> Any:
        batches = TAKE(self)
        step = self.consumed // self.batch
        labels = torch.cat([batch.labels_BT.flatten() for batch in batches])
        seen[step] = torch.bincount(labels[labels >= 0], minlength=VOCABULARY)
        if step == stop:
            os.kill(os.getpid(), signal.SIGTERM)
        return batches

    Batches.__next__ = taking  # type: ignore[method-assign]
    return seen


def leg(rank: int, runs: dict[str, list[str]], stop: int) -> dict[str, tuple[str, list[bool], dict[int, torch.Tensor]]]:
    """Go on with each run to step `stop`: what was said, whether the engine holds what the checkpoint holds, labels by step."""
    from llm.train import loop

    found, load, same = {}, loop.load_checkpoint, []

    def loading(engine: Any, checkpoint: Path, world: Any) -> Any:
        progress = load(engine, checkpoint, world)
        # DeepSpeed links the states for its own functions at the first step
        getattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state", lambda: None)()
        saved = whole_tensors(checkpoint)
        here = gathered(engine, {name: sorted(values.keys() - {WEIGHT}) for name, values in saved.items()})
        same.append(saved.keys() == here.keys() and all(torch.equal(saved[n][k], here[n][k]) for n in saved for k in here[n]))
        return progress

    loop.load_checkpoint = loading
    for name, words in runs.items():
        same.clear()
        seen = watch(stop if rank == 0 and name != "undisturbed" else None)
        found[name] = start(words), list(same), seen
    return found


@pytest.mark.parametrize(
    ("legs", "names"),
    [(SHORT, ["undisturbed", "moved"]), pytest.param(LONG, ["undisturbed", "moved", "half", "muon"], marks=pytest.mark.slow)],
    ids=["short", "long"],
)
def test_other_ranks_stages_and_sequence_parallelism_go_on(legs: list, names: list[str], words: Words, tmp_path: Path) -> None:
    first = words("train.precision=fp32", "train.optimizer.lr=0.001", "train.validate_every=10", "parallel.zero=3")
    runs = {name: [*first, f"name={name}"] for name in names}
    if "half" in runs:
        runs["half"].append("train.precision=bf16")
        runs["muon"].append("train.optimizer.kind=muon")
    labels = {name: torch.zeros(21, VOCABULARY, dtype=torch.long) for name in runs}
    for ranks, stop, zero, sequence in legs:
        if stop > legs[0][1]:
            # without masters there is no bfloat16
            stages = {"moved": zero, "half": max(zero, 1), "muon": zero}
            runs = {
                name: [str(tmp_path / "runs" / name), f"parallel.zero={stages[name]}", f"parallel.sequence={sequence}"]
                for name in names[1:]
            }
        for found in run_ranks(leg, ranks, runs, stop, timeout=250):
            for name, (said, same, seen) in found.items():
                assert said == f"step {20 if name == 'undisturbed' else stop}", name
                assert same == ([] if stop == legs[0][1] else [True]), name
                for step, counts in seen.items():
                    labels[name][step] += counts
    undisturbed, moved = (records(tmp_path / "runs" / name) for name in names[:2])
    for ours, theirs in zip(moved, undisturbed, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0, abs=1e-5), ours["step"]
        assert ours.get("validation_loss", 0) == pytest.approx(theirs.get("validation_loss", 0), rel=0, abs=1e-5)
    assert undisturbed[-1]["loss"] < undisturbed[0]["loss"] - 0.01
    for name in names:
        assert torch.equal(labels[name], labels["undisturbed"])
        assert [record["step"] for record in records(tmp_path / "runs" / name)] == list(range(1, 21))
    assert labels["undisturbed"][1:].sum(1).min() > 0
    if "half" in names:
        model, _, info = load_model(tmp_path / "runs/half")
        saved = whole_tensors(info.path)
        assert all(torch.equal(weight, saved[name][WEIGHT]) for name, weight in model.named_parameters())
