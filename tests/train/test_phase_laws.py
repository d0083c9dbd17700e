"""What is refused of phases before a process group starts, what they count and the rates they have; all without a run."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from launch import describe
from llm.data import DOCUMENT_TOKEN, Manifest, TokenStream
from llm.errors import ConfigError, DataError
from llm.train.branch import check_branch
from llm.train.config import load_config
from llm.train.phases import Phase, check_phases, manifests_of, phase_after, phases_of, start_of, stream_of
from llm.train.run_folder import RunFolder, differences_until
from llm.train.schedule import ScheduleConfig, learning_rate
from llm.train.start import check_sources, looked_at, plan
from llm.train.world import World
from tests.train.conftest import MODEL, TRAIN, write_dataset

Words = Callable[..., list[str]]
# 100 steps of 8 x 32 tokens, then what a test says
FIRST = "{steps: 100}"


@pytest.fixture
def words(manifest: Manifest, tmp_path: Path) -> Words:
    train = [word for word in TRAIN if not word.startswith("train.steps")]
    return lambda *more: [*MODEL, *train, f"data.manifest={manifest.root}", f"runs={tmp_path / 'runs'}", *more]


def checked(words: list[str], ranks: int = 1, step: int = 0) -> list[Phase]:
    phases = phases_of(load_config(words))
    check_phases(phases, ranks, manifests_of(phases), step)
    return phases


@pytest.mark.parametrize(
    ("phases", "sentence"),
    [
        ("[{steps: 3},{tokens: 1000}]", r"train.phases\[1\].tokens \(1000\) must be whole steps of 256 tokens .*; use 768 or 1024"),
        ("[{steps: 3, tokens: 256}]", r"train.phases\[0\] has steps \(3\) and tokens \(256\); give one of them"),
        ("[{},{steps: 3}]", r"train.phases\[0\] needs steps or tokens; only the last phase"),
        ("[{steps: 3},{}]", r"train.steps \(not set\) must be more than the 3 steps of the phases before the last"),
        ("[{steps: 0}]", r"train.phases\[0\].steps \(0\) must be at least 1"),
        ("[{stepz: 3}]", r"train.phases\[0\]: stepz: .*Did you mean: 'steps'"),
        ("[{steps: 3, data: {mixtur: {text: 1}}}]", r"train.phases\[0\]: data.mixtur: .*Did you mean: 'mixture'"),
        ("[{steps: 3, data: [1]}]", r"train.phases\[0\]: data \(\[1\]\) is a list where keys and values belong"),
        ("[3]", r"train.phases\[0\]: "),
        (
            "[{steps: 3, train: {max_minutes: 3}}]",
            r"train.phases\[0\].train.max_minutes is a setting of the whole run; set train.max",
        ),
        ("[{steps: 3, parallel: {offload: optimizer}}]", r"parallel.offload is a setting of the whole run"),
        (
            f"[{FIRST},{{steps: 3, data: {{mixture: {{txt: 1}}}}}}]",
            r"train.phases\[1\]: data.mixture names 'txt'.*did you mean 'text'",
        ),
        (
            f"[{FIRST},{{steps: 3, train: {{batch: 1}}}}]",
            r"train.phases\[1\]: train.batch \(1\) must hold a sequence for each of the",
        ),
        (
            f"[{FIRST},{{steps: 3, train: {{micro_batch: 9}}}}]",
            r"train.phases\[1\]: train.micro_batch \(9\) must be at most a rank",
        ),
        (
            f"[{FIRST},{{steps: 3, data: {{sequence_length: 33}}, parallel: {{sequence: 2}}}}]",
            r"\[1\]: data.sequence_length \(33\) must",
        ),
        (f"[{FIRST},{{steps: 3, data: {{sequence_length: 99999}}}}]", r"\[1\]: data.sequence_length \(99999\) must be at most the"),
        (f"[{FIRST},{{steps: 3, data: {{packing: contiguous}}}}]", r"\[1\]: data.packing \(contiguous\) carries states"),
        (f"[{FIRST},{{steps: 3, data: {{manifest: nowhere}}}}]", r"train.phases\[1\]: .*nowhere"),
        (
            f"[{FIRST},{{steps: 3, train: {{schedule: {{warmup: 4}}}}}}]",
            r"\[1\]: train.schedule.warmup \(4\) must be at least 0 and less",
        ),
        (
            f"[{FIRST},{{steps: 3, train: {{optimizer: {{kind: muon}}}}}}]",
            r"\[1\]: train.optimizer.kind \(muon\) must be that of the",
        ),
        (f"[{FIRST},{{steps: 3, model: {{width: 64}}}}]", r"\[1\]: model must have the parameters .* differs in embedding"),
        (f"[{FIRST},{{steps: 3, model: {{depth: 4}}}}]", r"\[1\]: model must have the parameters .* differs in blocks.2"),
    ],
)
def test_bad_phases_are_refused(phases: str, sentence: str, words: Words) -> None:
    with pytest.raises((ConfigError, DataError), match=sentence):
        checked(words(f"train.phases={phases}"), ranks=2)


def test_all_steps_are_those_of_the_phases(words: Words) -> None:
    phases = "train.phases=[{steps: 10},{tokens: 2560},{tokens: 1024, data: {sequence_length: 128}, train: {batch: 2}}]"
    *_, last = found = checked(words(phases))
    assert [(phase.first, phase.last, phase.tokens) for phase in found] == [(0, 10, 0), (10, 20, 2560), (20, 24, 5120)]
    assert (last.config.train.steps, last.tokens_at(24)) == (24, 6144)
    assert checked(words(phases, "train.steps=24"))[-1] == last
    with pytest.raises(
        ConfigError, match=r"train.steps \(25\) must be the 24 steps that train.phases have together; set train.steps=24,"
    ):
        checked(words(phases, "train.steps=25"))
    assert [phase_after(found, step).number for step in (0, 9, 10, 20, 23, 24)] == [0, 0, 1, 2, 2, 2]
    # the last goes on to train.steps; an item of the list is named by its number
    *_, last = checked(
        words("train.phases=[{steps: 10},{}]", "train.steps=40", "train.phases.0.steps=15", "train.phases.1.name=end")
    )
    assert (last.first, last.last, last.name) == (15, 40, "end")
    assert [phase.of for phase in checked(words("train.steps=3", "train.schedule.warmup=0"))] == [1]


def test_a_phase_that_is_over_need_not_fit_the_ranks(words: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    phases = words("train.phases=[{steps: 10, train: {batch: 2}},{steps: 10}]")
    checked(phases, ranks=4, step=10)
    with pytest.raises(ConfigError, match=r"train.phases\[0\]: train.batch \(2\)"):
        checked(phases, ranks=4, step=9)
    # nor on ranks that look at no dataset
    monkeypatch.setattr(World, "first_of_node", False)
    config = load_config(phases)
    folder, third = RunFolder.of(config), World(3, 4, torch.device("cpu"))
    with pytest.raises(ConfigError, match=r"train.batch \(2\)"):
        looked_at(phases_of(config), folder, third)
    (folder.checkpoints / "step-10").mkdir(parents=True)
    assert looked_at(phases_of(config), folder, third) is None


def test_a_phase_that_is_over_does_not_ask_for_its_dataset(words: Words, manifest: Manifest, tmp_path: Path) -> None:
    gone = write_dataset(tmp_path / "gone", ["text"]).root
    phases = phases_of(load_config(words(f"train.phases=[{{steps: 10, data: {{manifest: {gone}}}}},{{steps: 10}}]")))
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_bytes(manifest.tokenizer_path.read_bytes())
    for step in (4, 10):
        (tmp_path / f"step-{step}").mkdir()
        data = {**stream_of(phases, 0, Manifest.load(gone), (0,)).identity(), "consumed": 8 * step}
        progress = {"step": step, "phase": 0, "began": [0], "data": data}
        (tmp_path / f"step-{step}" / "progress.json").write_text(json.dumps(progress))
    shutil.rmtree(gone)
    with pytest.raises(DataError, match="gone"):
        manifests_of(phases, 9)
    none, there = manifests = manifests_of(phases, 10)
    assert none is None
    assert there is not None
    check_phases(phases, 1, manifests, 10, tokenizer)
    start = start_of(phases, manifests, tmp_path / "step-10")
    assert (start.phase.number, start.began, start.same_states) == (1, (0, 80), False)
    assert start.stream.identity() == stream_of(phases, 1, manifest, (0, 80)).identity()
    with pytest.raises(DataError, match=r"train.phases\[0\]: data.manifest .* is gone, and the newest whole checkpoint is"):
        start_of(phases, manifests, tmp_path / "step-4")
    # of another tokenizer, or none to compare with
    tokenizer.write_text("{}")
    with pytest.raises(DataError, match=r"must have the tokenizer of the first phase"):
        check_phases(phases, 1, manifests, 10, tokenizer)
    tokenizer.unlink()
    with pytest.raises(DataError, match=r"tokenizer.json; copy it from a checkpoint"):
        check_phases(phases, 1, manifests, 10, tokenizer)
    # asked for again, by a phase ahead
    between = f"{{steps: 10, data: {{manifest: {manifest.root}}}}}"
    again = phases_of(load_config(words(f"data.manifest={gone}", f"train.phases=[{{steps: 10}},{between},{{steps: 9}}]")))
    with pytest.raises(DataError, match=r"train.phases\[2\]: .*gone"):
        manifests_of(again, 15)


def test_tokenizers_must_be_one(words: Words, tmp_path: Path) -> None:
    other = write_dataset(tmp_path / "other", ["text"], [DOCUMENT_TOKEN, "<|more|>"])
    one = write_dataset(tmp_path / "one", ["code"])
    given = "train.phases=[{{steps: 10}},{{steps: 10, data: {{manifest: {}}}}}]"
    checked(words(given.format(one.root)))
    with pytest.raises(DataError, match=r"train.phases\[1\]: data.manifest \(.*other\) must have the tokenizer of the first phase"):
        checked(words(given.format(other.root), "model.vocab_size=300"))


def test_a_cut_that_comes_again_goes_on_where_it_ended(words: Words, manifest: Manifest) -> None:
    other = "{steps: 10, data: {sequence_length: 64}, train: {batch: 2}}"
    phases = checked(words(f"train.phases=[{{steps: 10}},{other},{{steps: 10}}]"))
    began = (0, 80, 100)
    first, second, third = (stream_of(phases, k, manifest, began) for k in range(3))
    plain = TokenStream(manifest, "train", phases[0].config.data, 0)
    assert first.identity() == third.identity() == plain.identity()
    assert (third.rows(np.arange(100, 180)).labels == plain.rows(np.arange(80, 160)).labels).all()
    # and the one between is an order of its own, from its beginning
    assert second.seed != 0
    alone = TokenStream(manifest, "train", phases[1].config.data, second.seed)
    assert (second.rows(np.arange(80, 100)).labels == alone.rows(np.arange(20)).labels).all()


def test_a_schedule_of_its_own_is_counted_from_the_phases_beginning(words: Words) -> None:
    own = "{steps: 6, train: {schedule: {kind: linear, warmup: 2}, optimizer: {lr: 0.5}}}"
    first, second, third = checked(words(f"train.phases=[{{steps: 10}},{own},{{steps: 4, train: {{optimizer: {{lr: 0.02}}}}}}]"))
    run, linear = ScheduleConfig(warmup=4), ScheduleConfig("linear", warmup=2)
    assert [first.rate(step) for step in range(1, 11)] == [learning_rate(run, 0.01, step, 20) for step in range(1, 11)]
    assert [second.rate(step) for step in range(11, 17)] == [learning_rate(linear, 0.5, step, 6) for step in range(1, 7)]
    # the run's goes on, from another peak
    assert [third.rate(step) for step in range(17, 21)] == [learning_rate(run, 0.02, step, 20) for step in range(17, 21)]


PHASES = "train.phases=[{steps: 10},{steps: 10, data: {mixture: {text: 2}}},{steps: 10}]"


def test_what_lies_ahead_may_change(words: Words, manifest: Manifest) -> None:
    old = load_config(words(PHASES))
    longer, shorter, mixture, context = (
        load_config(words(PHASES, word))
        for word in (
            "train.phases.1.steps=15",
            "train.phases.1.steps=4",
            "train.phases.1.data.mixture.text=3",
            "train.phases.2.data.sequence_length=64",
        )
    )
    for new, step, differing in (
        (longer, 20, {}),
        (longer, 21, {"train.phases[1] ends at step": (20, 25)}),
        (shorter, 15, {"train.phases[1] ends at step": (20, 14)}),
        (mixture, 10, {}),
        (mixture, 11, {"train.phases[1].data.mixture.text": (2.0, 3.0)}),
        (context, 21, {"train.phases[2].data.sequence_length": (32, 64)}),
    ):
        assert differences_until(old, new, step) == differing
    folder = RunFolder.of(old)
    folder.write(old, manifest)
    (folder.checkpoints / "step-20").mkdir()
    assert "train.phases.1.steps: 10 -> 15" in folder.check_same(longer)[0]
    assert plan([str(folder.path), "train.phases.1.steps=15", "train.steps=35"])[0] == longer
    for check in (folder.check_same, lambda config: check_branch(replace(config, name="b", branch_from=str(folder.path)))):
        with pytest.raises(ConfigError, match=r"train.phases\[1\].data.mixture.text: 2.0 -> 3.0"):
            check(mixture)


def test_a_run_without_phases_may_go_on_with_some(words: Words, manifest: Manifest) -> None:
    old = load_config(words("train.steps=100"))
    folder = RunFolder.of(old)
    folder.write(old, manifest)
    (folder.checkpoints / "step-60").mkdir()
    new = "train.phases=[{{steps: {}}},{{steps: 20, data: {{sequence_length: 64}}}}]"
    folder.check_same(load_config(words(new.format(60))))
    with pytest.raises(ConfigError, match=r"train.phases\[0\] ends at step: 100 -> 40"):
        folder.check_same(load_config(words(new.format(40))))


def test_fewer_steps_than_are_done_are_refused_in_one_sentence(words: Words, manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "step-8").mkdir()
    (tmp_path / "step-8" / "progress.json").write_text('{"step": 8, "phase": 1, "began": [0, 48], "data": {"consumed": 64}}')
    phases = phases_of(load_config(words("train.phases=[{steps: 6}]")))
    with pytest.raises(ConfigError, match=r"train.steps \(6\) must be at least 8"):
        start_of(phases, manifests_of(phases), tmp_path / "step-8")


def test_a_branch_that_has_a_checkpoint_does_not_ask_its_origin(words: Words, manifest: Manifest) -> None:
    old = load_config(words(PHASES))
    RunFolder.of(old).write(old, manifest)
    (RunFolder.of(old).checkpoints / "step-10").mkdir()
    mixture = load_config(words(PHASES, "train.phases.1.data.mixture.text=3", "name=b", f"branch_from={RunFolder.of(old).path}"))
    branch = RunFolder.of(mixture)
    check_sources(mixture, branch, phases_of(mixture), 1)
    (branch.checkpoints / "step-15").mkdir(parents=True)
    # the origin goes on, beyond what both have in common
    (RunFolder.of(old).checkpoints / "step-20").mkdir()
    check_sources(mixture, branch, phases_of(mixture), 1)


def test_described_phases(words: Words, capsys: pytest.CaptureFixture) -> None:
    assert (
        describe.main(words("train.phases=[{steps: 10},{name: long, tokens: 2560, data: {sequence_length: 256}}]", "train.batch=2"))
        == 0
    )
    title, _, *lines = capsys.readouterr().out.splitlines()
    assert title.strip() == "phases: 3,200 tokens"
    (first, second), where = (line.split() for line in lines[:2]), lines[2]
    assert first[:6] == ["0", "10", "640", "2", "x", "32"]
    assert second[:7] == ["1", "long", "5", "2,560", "2", "x", "256"]
    assert int(first[-1].replace(",", "")) < int(second[-1].replace(",", ""))
    assert where == "in phase 1:"


def test_the_example_is_whole() -> None:
    phases = phases_of(load_config(["exp/phases.yaml"]))
    assert [phase.name for phase in phases] == ["stable", "annealing", "long"]
    assert phases[-1].tokens_at(phases[-1].last) == 44_236_800
    assert phases[1].config.data.mixture == {"docs": 0.6, "python": 0.2, "stdlib": 0.2}
