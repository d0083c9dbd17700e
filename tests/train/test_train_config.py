"""What is refused before a process group starts: each law in one sentence with the way out."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from llm.config import to_yaml
from llm.data import Manifest
from llm.errors import CheckpointError, ConfigError, DataError
from llm.train.config import accumulation_of, build_config, load_config, repeated_reductions
from llm.train.deepspeed_config import deepspeed_config
from llm.train.laws import check
from llm.train.load import load_model
from llm.train.optimizer import MuonConfig, parameter_groups
from llm.train.precision import resolved
from llm.train.run_folder import RunFolder
from llm.train.start import agree, plan

Words = Callable[..., list[str]]


@pytest.mark.parametrize(
    ("word", "ranks", "sentence"),
    [
        ("train.batch=9", 2, ""),
        ("train.micro_batch=3", 2, ""),
        ("train.batch=2", 3, r"train.batch \(2\) must hold a sequence for each of the ranks \(3\); use train.batch=3"),
        ("train.micro_batch=5", 2, r"train.micro_batch \(5\) must be at most a rank's share of train.batch \(4 of 8\)"),
        ("data.packing=contiguous", 1, r"must not grow with the document; give every attention layer a window"),
        ("train.precision=bf16", 1, ""),
        ("parallel.zero=4", 1, "one of 0, 1, 2, 3"),
        ("model.vocab_size=100", 1, "set model.vocab_size=257"),
        ("data.sequence_length=0", 1, "at least 1"),
        ("train.clip=0", 1, "positive, or null"),
        ("train.steps=0", 1, "train.steps"),
        ("train.optimizer.lr=0", 1, "must be positive"),
        ("train.optimizer.betas=[0.9,1.0]", 1, "betas"),
        ("train.optimizer.kind=muom", 1, "did you mean 'muon'"),
        ("train.optimizer.lr_scale.embeding=2", 1, "unknown role 'embeding'; did you mean 'embedding'"),
        ("train.optimizer.lr_scale.output matrix=2", 1, ""),
        ("train.optimizer.lr_scale.norm=-1", 1, "0 freezes the role"),
        ("train.optimizer.gradient_noise=0", 1, "or null for none"),
        ("train.z_loss=-1", 1, "0 switches it off"),
        ("model.mup_base_width=0", 1, "null for no scaling"),
        ("train.schedule.warmup=20", 1, "less than train.steps"),
        ("train.hang_minutes=-1", 1, r"train.hang_minutes \(-1.0\) must be finite and not negative"),
        ("train.max_minutes=0", 1, r"train.max_minutes \(0.0\) must be finite and positive, or null"),
        ("train.bad_steps.skip=1000", 1, r"train.bad_steps.skip \(1000\) must be at least 0 and less than train.bad_steps.window"),
        ("train.keep_every=7", 1, r"keep_every \(7\) must be a multiple of train.checkpoint_every \(0\)"),
        ("grow_vocab=true", 1, "has no effect without init_from"),
        ("name=a/b", 1, "names the run's folder"),
        ("name=lr=3e-4", 1, "names the run's folder"),
    ],
)
def test_laws_between_settings(word: str, ranks: int, sentence: str, words: Words, manifest: Manifest) -> None:
    if not sentence:
        check(load_config(words(word)), ranks, manifest)
        return
    with pytest.raises(ConfigError, match=sentence):
        check(load_config(words(word)), ranks, manifest)


def test_offload_is_adamws_under_zero(words: Words, manifest: Manifest) -> None:
    check(load_config(words("parallel.offload=optimizer")), 1, manifest)
    for more, sentence in (("train.optimizer.kind=muon", "or parallel.offload=none"), ("parallel.zero=0", "needs ZeRO")):
        with pytest.raises(ConfigError, match=sentence):
            check(load_config(words("parallel.offload=optimizer", more)), 1, manifest)


def test_bf16_needs_master_weights(words: Words, manifest: Manifest) -> None:
    with pytest.raises(ConfigError, match=r"set parallel.zero=1, or train.precision=fp32"):
        check(load_config(words("train.precision=bf16", "parallel.zero=0")), 1, manifest)


def test_a_misspelled_key_is_refused(words: Words) -> None:
    with pytest.raises(ConfigError, match="stepz"):
        load_config(words("train.stepz=3"))


def test_precision_is_decided_once_and_said(words: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    config = load_config(words("parallel.zero=2"))
    for native, precision in ((False, "fp32"), (True, "bf16")):
        monkeypatch.setattr("llm.train.precision.computes_in_bf16", lambda device, native=native: native)
        found, why = resolved(config, cpu)
        assert found.train.precision == precision
        assert why.startswith(f"precision {precision}: ")
        assert resolved(found, cpu)[0] == found
    assert "ZeRO stage 0" in resolved(load_config(words("parallel.zero=0")), cpu)[1]


def test_the_written_config_reads_back_equal(words: Words, tmp_path: Path) -> None:
    config = load_config(words())
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert RunFolder(tmp_path).read_config() == config


def test_a_run_with_another_config_is_refused_and_its_difference_shown(words: Words, manifest: Manifest) -> None:
    config = load_config(words())
    folder = RunFolder.of(config)
    folder.check_same(config)
    folder.write(config, manifest)
    folder.check_same(replace(config, train=replace(config.train, log_every=7)))
    with pytest.raises(ConfigError, match=r"seed: 0 -> 1.*resume that run with `pretrain.py .*tiny`.*name=ANOTHER"):
        folder.check_same(replace(config, seed=1))
    with pytest.raises(ConfigError, match=r"model.layers.r.mixer.heads: 2 -> 4"):
        folder.check_same(load_config(words("model.layers.r.mixer.heads=4")))


def test_a_run_folder_resumes_with_its_own_config(words: Words, manifest: Manifest, tmp_path: Path) -> None:
    config = load_config(words())
    RunFolder.of(config).write(config, manifest)
    path = str(RunFolder.of(config).path)
    found, folder = plan([path, "train.log_every=3"])
    assert found == replace(config, train=replace(config.train, log_every=3))
    assert folder == RunFolder.of(config)
    found, _ = plan([path, "train.steps=30", "train.schedule.cooldown=10"])
    (sentence,) = folder.check_same(found)
    assert "train.steps: 20 -> 30; train.schedule.cooldown: None -> 10" in sentence
    with pytest.raises(ConfigError, match=r"'seed=9' cannot be given"):
        plan([path, "seed=9"])
    with pytest.raises(CheckpointError, match="neither a run folder nor a checkpoint"):
        plan([str(tmp_path)])
    with pytest.raises(ConfigError, match="no config is given"):
        plan([])


def test_a_folder_without_checkpoints_has_no_model(words: Words, manifest: Manifest) -> None:
    config = load_config(words())
    RunFolder.of(config).write(config, manifest)
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        load_model(RunFolder.of(config).path)


@pytest.mark.parametrize(
    ("micro", "ranks", "steps"), [("null", 2, 1), ("2", 2, 2), ("1", 2, 4), ("8", 1, 1), ("3", 2, 2), ("null", 3, 1), ("2", 3, 2)]
)
def test_the_batch_is_ranks_times_micro_batch_times_accumulation(micro: str, ranks: int, steps: int, words: Words) -> None:
    config = load_config(words(f"train.micro_batch={micro}"))
    assert accumulation_of(config, ranks) == steps
    found = deepspeed_config(config, ranks)
    assert found["train_batch_size"] == ranks * found["train_micro_batch_size_per_gpu"] * found["gradient_accumulation_steps"]


def test_it_is_said_that_zero_2_sends_every_micro_batch(words: Words) -> None:
    (sentence,) = repeated_reductions(load_config(words("train.micro_batch=1", "parallel.zero=2")), 2)
    assert "after each of 4 micro-batches" in sentence
    for word in ("parallel.zero=1", "train.micro_batch=4"):
        assert repeated_reductions(load_config(words("train.micro_batch=1", "parallel.zero=2", word)), 2) == []


def test_every_parameter_is_in_one_group_and_only_matrices_decay(words: Words) -> None:
    from llm.model import Decoder

    config = load_config(words())
    with torch.device("meta"):
        model = Decoder(config.model)
    groups = parameter_groups(config.train.optimizer, model)
    where = {id(p): k for k, group in enumerate(groups) for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(where) == len(list(model.parameters()))
    decays = {name: groups[where[id(p)]]["weight_decay"] for name, p in model.named_parameters()}
    assert decays["blocks.0.mixer.q_proj.weight"] == 0.1
    assert decays["embedding"] == decays["blocks.0.mixer_norm.norm_weight"] == decays["blocks.0.mixer.head_norm_bias"] == 0.0
    # what is kept in float32 shares no group with what is cast
    assert where[id(model.embedding)] != where[id(model.norm.norm_weight)]


def test_shipped_configs_load(manifest: Manifest) -> None:
    for stage in range(4):
        config = load_config(["exp/tiny.yaml", f"parallel/zero{stage}.yaml", f"data.manifest={manifest.root}"])
        assert config.parallel.zero == stage
        check(config, 2, manifest)
    for kind in ("wsd", "cosine"):
        assert (
            load_config(["base.yaml", f"train/{kind}.yaml", "train.steps=1", "train.batch=1", *NAMED]).train.schedule.kind == kind
        )
    muon = load_config(["base.yaml", "train/muon.yaml", "train.steps=1", "train.batch=1", *NAMED]).train.optimizer
    assert muon == MuonConfig()


NAMED = ["name=x", "data.manifest=none", "model.width=8", "model.depth=1", "model.vocab_size=9"]


def test_build_config_takes_plain_values() -> None:
    with pytest.raises(ConfigError, match="width"):
        build_config({"name": "x", "model": {"width": "wide"}})


class ThreeRanks:
    """What rank 0 of three sees when the last one, on another node, has read another manifest; the second reads none."""

    def gather(self, value: list[str]) -> list[list[str] | None]:
        return [value, None, ["0" * 64]]


def test_ranks_that_read_different_datasets_do_not_start(manifest: Manifest) -> None:
    with pytest.raises(DataError, match=rf"is {manifest.hash[:12]} on rank 0 and 000000000000 on rank 2"):
        agree([manifest], ThreeRanks())  # type: ignore[arg-type]
