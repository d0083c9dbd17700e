"""Distillation: what a layer or a whole model learns from a teacher, over ranks and ZeRO stages; what cannot be is refused."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from launch import describe
from llm import cost
from llm.config import build
from llm.data import Manifest
from llm.docs import Docs
from llm.errors import BraidError, ConfigError
from llm.model import Decoder, ModelConfig, model_kinds
from llm.testing import run_ranks
from llm.train.config import load_config
from llm.train.distill import Distillation, DistillConfig, relative_error
from llm.train.load import load_model
from llm.train.teacher import check_teacher, flops_per_token, teacher_config
from tests.eval.writing import small_config, write_run
from tests.train.conftest import TRAIN, VOCABULARY
from tests.train.test_resume import records, start

ATTENTION = {"kind": "attention", "heads": 4, "kv_heads": 2}
MAMBA2 = {"kind": "mamba2", "heads": 4, "groups": 4, "state": 8, "expand": 1}
Words = Callable[..., list[str]]


def model_config(*mixers: dict[str, Any], vocabulary: int = VOCABULARY, width: int = 32) -> ModelConfig:
    layers = {f"l{i}": {"mixer": mixer, "ffn": "swiglu"} for i, mixer in enumerate(mixers)}
    values = {"width": width, "depth": len(mixers), "vocab_size": vocabulary, "layers": layers, "pattern": list(layers)}
    return build(ModelConfig, values, model_kinds(""))


TEACHER = model_config(ATTENTION, ATTENTION, ATTENTION)
STUDENT = model_config(ATTENTION, MAMBA2, ATTENTION)


def weights_of(config: ModelConfig) -> dict[str, torch.Tensor]:
    """The teacher's, where a model has them. Its next tokens are far from even."""
    teacher = Decoder.create(TEACHER, seed=1).state_dict()
    teacher["embedding"] *= 20
    return {name: teacher.get(name, x) for name, x in Decoder.create(config, seed=1).state_dict().items()}


def folder_of(path: Path, config: ModelConfig) -> Path:
    """As braid-import writes it."""
    path.mkdir()
    (path / "model.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create({"model": asdict(config)})))
    save_file(weights_of(config), path / "model.safetensors")
    return path


def pair(match: str, student: ModelConfig = STUDENT, **settings: Any) -> tuple[Decoder, Distillation]:
    teacher, decoder = Decoder.create(TEACHER, seed=1), Decoder.create(student, seed=1)
    teacher.load_state_dict(weights_of(TEACHER))
    decoder.load_state_dict(weights_of(student))
    return decoder, Distillation(DistillConfig("-", match, **settings), teacher, student)


def batch(starts: list[int], length: int = 40) -> tuple[torch.Tensor, torch.Tensor, Docs]:
    tokens = torch.randint(VOCABULARY, (1, length), generator=torch.Generator().manual_seed(0))
    return tokens, tokens.roll(-1), Docs((torch.arange(length) == torch.tensor(starts)[:, None]).any(0)[None])


@pytest.mark.parametrize("match", ["mixers", "logits"])
def test_packed_documents_are_taught_as_if_each_were_alone(match: str) -> None:
    decoder, distillation = pair(match)
    tokens, labels, docs = batch([0, 13, 14])
    whole = distillation.loss(decoder, tokens, labels, docs, None)
    parts = [slice(0, 13), slice(13, 14), slice(14, 40)]
    alone = sum(distillation.loss(decoder, tokens[:, part], labels[:, part], None, None) for part in parts)
    torch.testing.assert_close(whole, alone)


def test_a_mixer_that_is_the_teachers_has_nothing_to_learn() -> None:
    """A window as wide as the sequence changes nothing but the config."""
    wide = model_config(ATTENTION, ATTENTION | {"window": 1000}, ATTENTION)
    decoder, distillation = pair("mixers", wide)
    assert distillation.layers == [1]
    assert distillation.loss(decoder, *batch([0]), None) < 1e-9
    with torch.no_grad():
        decoder.blocks[1].mixer.out_proj.weight.mul_(1.5)
    # |1.5 y - y|^2 / |y|^2, for each of 40 tokens
    torch.testing.assert_close(distillation.loss(decoder, *batch([0]), None), torch.tensor(10.0))


def test_only_replaced_mixers_learn_from_mixers() -> None:
    decoder, distillation = pair("mixers")
    distillation.loss(decoder, *batch([0, 9]), None).backward()
    learns = {name for name, parameter in decoder.named_parameters() if parameter.grad is not None}
    assert learns == {name for name, _ in decoder.named_parameters() if not distillation.frozen(name)}
    assert {name.split(".")[1] for name in learns} == {"1"}
    assert "blocks.1.mixer_norm.norm_weight" in learns
    assert all(parameter.grad is None for parameter in distillation.teacher.parameters())


def test_the_student_is_fed_what_the_teacher_is_fed() -> None:
    decoder, distillation = pair("mixers")
    tokens, labels, docs = batch([0])
    labels[0, 5] = -100
    teacher = distillation.teacher
    x = teacher.blocks[0](teacher.embedding[tokens], None, docs)[0]
    wanted, found = (block.mixer(block.mixer_norm(x), None, docs)[0] for block in (teacher.blocks[1], decoder.blocks[1]))
    errors = ((found - wanted).norm(dim=-1) / wanted.norm(dim=-1)) ** 2
    torch.testing.assert_close(relative_error(found, wanted), errors)
    torch.testing.assert_close(distillation.loss(decoder, tokens, labels, docs, None), errors.sum() - errors[0, 5])


@pytest.mark.parametrize("match", ["mixers", "logits"])
def test_flops_are_the_teachers_too(match: str, tmp_path: Path) -> None:
    """Against a count of all products, forward and backward, but for those of attention, which counters see whole."""
    student = model_config(ATTENTION, ATTENTION | {"kv_heads": 4}, ATTENTION)
    distill = DistillConfig(str(folder_of(tmp_path / "teacher", TEACHER)), match)  # type: ignore[arg-type]
    decoder, distillation = Decoder.create(student, seed=1), Distillation(distill, Decoder.create(TEACHER, seed=1), student)
    config = small_config(student)
    config = replace(config, train=replace(config.train, distill=distill))
    tokens, labels, _ = batch([0], config.data.sequence_length)
    aten = torch.ops.aten
    none = (aten._scaled_dot_product_flash_attention_for_cpu, aten._scaled_dot_product_flash_attention_for_cpu_backward)
    with FlopCounterMode(display=False, custom_mapping=dict.fromkeys(none, lambda *_, **__: 0)) as counter:
        distillation.loss(decoder, tokens, labels, None, None).backward()
    pairs, head = cost.attention(4, 8, 8, tokens.numel(), None).flops, cost.projection(32, VOCABULARY).flops
    # three of the student's layers learn or one, beside three of the teacher's or two; logits are made again, which is not progress
    attention, again = (9 + 3) * pairs if match == "logits" else (3 + 2) * pairs, 2 * head if match == "logits" else 0.0
    counted = counter.get_total_flops() / tokens.numel()
    assert flops_per_token(config) == pytest.approx(counted + attention - again, rel=1e-9)


@pytest.fixture
def words(manifest: Manifest, tmp_path: Path) -> Words:
    folders = folder_of(tmp_path / "teacher", TEACHER), folder_of(tmp_path / "student", STUDENT)
    settings = [f"train.distill.teacher={folders[0]}", f"init_from={folders[1]}", "train.precision=fp32", "train.batch=4"]
    settings += ["train.steps=8", "train.schedule.warmup=2", "train.optimizer.lr=0.003"]
    names = [str(folders[1] / "model.yaml"), *TRAIN, *settings, f"data.manifest={manifest.root}", f"runs={tmp_path / 'runs'}"]
    return lambda *more: [*names, *more]


CASES = {
    "zero0": ["parallel.zero=0"],
    "grid": ["parallel.zero=2", "parallel.sequence=2", "train.activation_checkpointing=true"],
    "micro": ["parallel.zero=1", "train.micro_batch=1"],
    "zero2": ["parallel.zero=2"],
    "split": ["parallel.zero=0", "parallel.sequence=2"],
    "bf16": ["parallel.zero=1", "train.precision=bf16"],
}


def runs(rank: int, words: list[str], cases: list[tuple[str, str]]) -> list[str]:
    return [start([*words, *CASES[name], f"train.distill.match={match}", f"name={match}-{name}"]) for match, name in cases]


@pytest.mark.multirank
@pytest.mark.timeout(600)
@pytest.mark.parametrize("names", [["zero0", "grid"], pytest.param(list(CASES), marks=pytest.mark.slow)], ids=["few", "all"])
def test_every_stage_and_split_learns_alike(names: list[str], words: Words, tmp_path: Path) -> None:
    cases = [(match, name) for match in ("mixers", "logits") for name in names]
    assert run_ranks(runs, 2, words(), cases, timeout=580)[0] == ["step 8"] * len(cases)
    before = weights_of(STUDENT)
    for match, name in cases:
        folder = tmp_path / "runs" / f"{match}-{name}"
        losses, first = ([record["loss"] for record in records(path)] for path in (folder, folder.with_name(f"{match}-zero0")))
        assert losses == pytest.approx(first, rel=0.05 if name == "bf16" else 1e-4), (match, name)
        assert losses[-1] < 0.9 * losses[0], (match, name)
        after = load_model(folder)[0].state_dict()
        moved = {key for key, x in after.items() if not torch.equal(x, before[key])}
        assert {key.split(".")[1] for key in moved if match == "mixers"} <= {"1"}
        assert match == "mixers" or moved == set(after)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["parallel.zero=3"], r"parallel.zero \(3\) splits weights, .* use parallel.zero=2"),
        (["train.z_loss=0.1"], r"train.z_loss \(0.1\) has no effect with train.distill"),
        (["model.vocab_size=300"], r"model.vocab_size \(300\) must be that of train.distill.teacher \(257\)"),
        (["train.distill.match=mixers", "init_from=null"], "which must be the teacher's weights; set init_from"),
        (["train.distill.match=mixers", "train.distill.teacher=STUDENT"], r"and all are; replace some \(braid-import --replace\)"),
        (["train.distill.teacher=nowhere"], r"train.distill.teacher \(nowhere\) holds no model; name a run"),
        (
            ["parallel.sequence=2", "parallel.mode=heads", "train.distill.teacher=NARROW"],
            r"distill.teacher \(.*1 heads, fewer",
        ),
    ],
)
def test_what_cannot_be_taught_is_refused(more: list[str], sentence: str, words: Words, tmp_path: Path) -> None:
    folder_of(tmp_path / "narrow", model_config(ATTENTION | {"heads": 1, "kv_heads": 1}))
    given = [word.replace("STUDENT", str(tmp_path / "student")).replace("NARROW", str(tmp_path / "narrow")) for word in more]
    with pytest.raises(BraidError, match=sentence):
        check_teacher(load_config(words(*given)), 2)


@pytest.mark.parametrize("match", ["mixers", "logits"])
def test_the_recipes_load(match: str, words: Words, tmp_path: Path) -> None:
    config = load_config([str(tmp_path / "student/model.yaml"), f"exp/distill-{match}.yaml", f"data.manifest={tmp_path}"])
    config.train.check()
    assert (config.train.distill.teacher, config.train.distill.match) == ("imports/base", match)
    assert config.init_from == {"mixers": "imports/hybrid", "logits": "runs/distill-mixers"}[match]


def test_a_run_that_still_learns_teaches_by_a_checkpoint_that_is_named(tmp_path: Path) -> None:
    ended = small_config(TEACHER)
    assert teacher_config(write_run(tmp_path / "ended", ended, b"")) == TEACHER
    going = write_run(tmp_path / "going", replace(ended, train=replace(ended.train, steps=5)), b"")
    with pytest.raises(ConfigError, match=r"teacher \(.*going\) is a run at step 3 of 5, .* name one: .*going/checkpoints/step-3$"):
        teacher_config(going)
    assert teacher_config(going / "checkpoints" / "step-3") == TEACHER


def test_its_memory_is_told_before_it_runs(words: Words) -> None:
    config = load_config(words())
    teacher = sum(parameter.numel() for parameter in Decoder(TEACHER).parameters())
    assert describe.teacher_bytes(config) == 4 * teacher
    in_bf16 = load_config(words("train.precision=bf16", "parallel.zero=1"))
    assert describe.teacher_bytes(in_bf16) == 2 * teacher
    for none_here in ("null", "imports/elsewhere"):
        assert describe.teacher_bytes(load_config(words(f"train.distill.teacher={none_here}"))) == 0


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"temperature": 2.0}, r"temperature \(2.0\) has no effect without a.teacher"),
        ({"teacher": "x", "match": "mixers", "weight": 0.9}, r"weight \(0.9\) has no effect without a.match=logits"),
        ({"teacher": "x", "weight": 0.0}, r"weight \(0.0\) must be above 0 and at most 1"),
        ({"teacher": "x", "temperature": 0.0}, r"temperature \(0.0\) must be finite and positive"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        DistillConfig(**settings).check("a")
