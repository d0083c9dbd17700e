"""From a run folder to reports, a text and a refusal, by the commands themselves, from a folder that is not the checkout."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from safetensors.torch import save_file

from data_prep.bpe import train_bpe
from eval.run import main as evaluate
from eval.subject import load_subject
from launch import describe, generate
from llm.config import to_yaml
from llm.cost import model_cost
from llm.errors import DataError
from llm.model import Decoder
from llm.train import checkpoint_files as files
from llm.train.config import RunConfig, build_config

STEPS, BATCH, WINDOW = 3, 2, 16


@pytest.fixture
def run(subject, tmp_path, monkeypatch) -> Path:
    """A run folder with one checkpoint of an untrained model, its dataset named relative to the folder that holds `runs`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(subject.manifest.root)
    tokenizer = subject.manifest.tokenizer_path.read_bytes()
    return write_run(tmp_path / "runs" / "small", small_config(subject.model.config), tokenizer)


def small_config(model) -> RunConfig:
    return build_config(
        {
            "name": "small",
            "model": asdict(model),
            "data": {"manifest": "data", "sequence_length": WINDOW},
            "train": {"steps": STEPS, "batch": BATCH},
        }
    )


def write_run(run: Path, config: RunConfig, tokenizer: bytes) -> Path:
    checkpoint = run / "checkpoints" / files.name_of(STEPS)
    (checkpoint / files.WEIGHTS).mkdir(parents=True)
    (run / files.CONFIG).write_text(to_yaml(config))
    (checkpoint / files.CONFIG).write_text(to_yaml(config))
    (checkpoint / files.TOKENIZER).write_bytes(tokenizer)
    (checkpoint / files.PROGRESS).write_text(json.dumps({"step": STEPS, "tokens": STEPS * BATCH * WINDOW, "data": {}}))
    save_file(dict(Decoder.create(config.model, seed=0).state_dict()), checkpoint / files.weights_of(0))
    names = [files.CONFIG, files.TOKENIZER, files.PROGRESS, files.weights_of(0)]
    (checkpoint / files.FILES).write_text(json.dumps(files.seal(checkpoint, names)))
    return run


def test_reports_hold_what_repeats_them(run, tmp_path, monkeypatch, capsys, subject):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    for task in ("perplexity", "bigram"):
        assert evaluate(["--run", str(run), "--device", "cpu", task, "max_tokens=150"]) == 0
    assert "bits per byte" in capsys.readouterr().out
    model, baseline = (json.loads((run / "report" / f"eval-{task}.json").read_text()) for task in ("perplexity", "bigram"))
    counted = ("tokens", "bytes", "documents")
    assert [model["results"][key] for key in counted] == [baseline["results"][key] for key in counted]
    assert baseline["results"]["fitted_on"]["of"] == STEPS * BATCH
    assert model["subject"]["manifest"] == subject.manifest.hash
    assert (model["subject"]["step"], model["settings"]["max_tokens"]) == (STEPS, 150)
    assert "torch" in model["versions"]["packages"]


def test_a_run_of_another_tokenizer_is_refused(subject, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(subject.manifest.root)
    other = train_bpe(["another text altogether"] * 9, vocabulary=270)
    run = write_run(tmp_path / "runs" / "small", small_config(subject.model.config), other)
    with pytest.raises(DataError, match="is not that of data"):
        load_subject(run)


def test_generated_text_begins_with_the_prompt(run, capsys):
    words = [str(run), "--device", "cpu", "--prompt", "a bright cold", "--tokens", "5"]
    assert generate.main([*words, "--seed", "1"]) == generate.main([*words, "--seed", "1"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("a bright cold")
    assert said[: len(said) // 2] == said[len(said) // 2 :]


def test_described_layers_add_up(run):
    config = small_config(load_subject(run).model.config)
    rows = list(zip(*(column._cells for column in describe.table(config).columns), strict=True))
    for column, whole in enumerate(asdict(model_cost(config.model, WINDOW)).values(), start=2):
        values = [int(str(row[column]).replace(",", "")) for row in rows]
        assert values[-1] == sum(values[:-1]) == whole
